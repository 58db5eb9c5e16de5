"""Exported files, run by the runtimes that they are for, in a process of their own: see ``worker``."""

import contextlib
import json
import os
import selectors
import signal
import struct
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from factor_transfer.errors import InputError, printable
from factor_transfer.export.formats import worker
from factor_transfer.export.formats.optional import need

ENDINGS = {"executorch": ".pte", "onnx": ".onnx"}

START_S = 120.0  # that a process may take to import a runtime
LOAD_S = 60.0  # that a file may take to be loaded, and tried on an image
IMAGE_S = 2.0  # that a file may take for each further one
_LONGEST_LINE = 2**16  # bytes of an answer before its logits
_DTYPES = {"uint8": torch.uint8, "float32": torch.float32}


class ExportedFile:
    """An exported file that was loaded, in a process of its own which ends with this object.

    What comes back from there is looked at before it is believed: the file may be damaged, or mean harm.

    Args:
        path: of a ``.pte`` or ``.onnx`` file.

    Attributes:
        shape: of one image (C, H, W).
        dtype: of its input, uint8 or float32.
        dynamic: whether it takes several images at once.
        classes: how many logits it returns for an image.

    Raises:
        InputError: the file is damaged, of another kind, ends its process or takes too long.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._place = tempfile.TemporaryDirectory(prefix="factor-transfer-")
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the process lives)
        # In a session of its own: Ctrl-C is for this process, which ends that one.
        self._process = subprocess.Popen(
            [*command(), "serve", str(path.resolve()), str(LOAD_S)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            cwd=self._place.name,
            env=environment(),
            start_new_session=True,
        )
        self.close = weakref.finalize(self, _end, self._process, self._said, self._place)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        for pipe in (self._process.stdin, self._process.stdout):
            os.set_blocking(pipe.fileno(), False)
        self._left = b""  # of what was read
        self._answer(START_S)
        answer = self._answer(LOAD_S)
        shape, dtype, classes = (answer.get(key) for key in ("shape", "dtype", "classes"))
        if not (_are_sizes(shape, 3) and dtype in _DTYPES and _are_sizes([classes], 1)):
            raise self._refused("it does not say what images it takes")
        assert isinstance(shape, list)
        assert isinstance(classes, int)
        self.shape, self.dtype, self.classes = tuple(shape), _DTYPES[str(dtype)], classes
        self.dynamic = answer.get("dynamic") is True

    def run(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W), any number, -> logits (B, K).

        Raises:
            InputError: the file says something else, ends its process or takes too long.
        """
        if tuple(images.shape[1:]) != self.shape or images.dtype != self.dtype:
            raise InputError(
                f"{self.path} takes {self.dtype} images of {list(self.shape)}, not {images.dtype} of "
                f"{list(images.shape[1:])}"
            )
        limit = LOAD_S + IMAGE_S * len(images)
        self._send(struct.pack("<Q", len(images)), time.monotonic() + limit)
        self._send(images.contiguous().numpy().data.cast("B"), time.monotonic() + limit)
        answer = self._answer(limit)
        if answer.get("shape") != [len(images), self.classes]:
            raise self._refused(f"to {len(images)} images it returns logits of shape {answer.get('shape')}")
        content = bytearray(self._read(len(images) * self.classes * 4, limit))
        return torch.frombuffer(content, dtype=torch.float32).view(len(images), self.classes)

    def _send(self, content: Any, deadline: float) -> None:
        assert self._process.stdin is not None
        pipe = self._process.stdin
        view = memoryview(content)
        while len(view):
            self._wait(pipe, selectors.EVENT_WRITE, deadline)
            try:
                view = view[os.write(pipe.fileno(), view[: 2**20]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:  # it has ended, and may have said why
                return

    def _answer(self, seconds: float) -> dict[str, Any]:
        """The next line of what it says."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._left:
            if len(self._left) > _LONGEST_LINE:
                raise self._refused("what comes back from it is no answer")
            self._receive(deadline)
        line, _, self._left = self._left.partition(b"\n")
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise self._refused("what comes back from it is no answer")
        if "error" in answer:
            raise self._refused(str(answer["error"]))
        return answer

    def _read(self, count: int, seconds: float) -> bytes:
        deadline = time.monotonic() + seconds
        while len(self._left) < count:
            self._receive(deadline)
        content, self._left = self._left[:count], self._left[count:]
        return content

    def _receive(self, deadline: float) -> None:
        assert self._process.stdout is not None
        pipe = self._process.stdout
        self._wait(pipe, selectors.EVENT_READ, deadline)
        try:
            content = os.read(pipe.fileno(), 2**20)
        except BlockingIOError:
            return
        if not content:
            raise self._refused(_death(self._process))
        self._left += content

    def _wait(self, pipe: IO[bytes], event: int, deadline: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, event)
            if not selector.select(max(deadline - time.monotonic(), 0)):
                raise self._refused("it takes too long; its process was ended")

    def _refused(self, why: str) -> InputError:
        """The process is ended, and what its runtime said of the fault goes before what it raised."""
        if self.close.alive:
            self._process.kill()
            self._process.wait()
            self._said.seek(0)
            lines = self._said.read(2**20).decode(errors="replace").splitlines()
            # "[program.cpp:153] …", as ExecuTorch says it.
            heard = [line.partition("] ")[2] for line in lines if line.startswith("[") and "cpuinfo" not in line]
            self.close()
            why = "; ".join([line for line in heard if line][:2]) or why
        task = "run" if hasattr(self, "classes") else "loaded"
        return InputError(f"{self.path} cannot be {task}; it is damaged, or of another kind: {printable(why)[:300]}")


def command() -> list[str]:
    """What starts the worker.

    -P: nothing is imported that lies beside the script, where modules are named as the libraries are, or in the working
    directory.
    """
    return [sys.executable, "-P", "-B", str(Path(worker.__file__).resolve())]


def environment() -> dict[str, str]:
    """The worker's, whose own children import nothing from the working directory, either."""
    return {**os.environ, "PYTHONSAFEPATH": "1"}


def open_file(path: Path) -> ExportedFile:
    """Load an exported file.

    Raises:
        InputError: it is missing, damaged, of another kind, or its runtime is not installed.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    format = next((name for name, ending in ENDINGS.items() if path.suffix == ending), None)
    if format is None:
        raise InputError(f"{path} is no exported network: its name must end in {' or '.join(ENDINGS.values())}")
    need(format)
    return ExportedFile(path)


def run_over(file: ExportedFile, batches: Iterable[Tensor]) -> Tensor:
    """The logits (N, K) of all images in batches (B, C, H, W)."""
    return torch.cat([file.run(batch) for batch in batches])


def costs(files: Sequence[Path]) -> list[dict[str, float]]:
    """Latency and memory of exported files, one after another; see ``worker.probe``.

    Raises:
        InputError: one cannot be run.
    """
    arguments = [*command(), "measure", *(str(path.resolve()) for path in files)]
    with tempfile.TemporaryDirectory(prefix="factor-transfer-") as place:
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=place,
            env=environment(),
            start_new_session=True,
        )
        try:
            said, errors = process.communicate(timeout=START_S + 2 * LOAD_S * len(files))
        except subprocess.TimeoutExpired:
            raise InputError(f"{files[0]} cannot be measured: it takes too long") from None
        finally:
            _kill_group(process)
    lines = errors.decode(errors="replace").splitlines()
    try:
        found: list[dict[str, float]] = json.loads(said)
    except ValueError:
        why = lines[-1] if lines else _death(process)
        raise InputError(f"{files[0]} cannot be measured: {printable(why)[:300]}") from None
    return found


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # they have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _are_sizes(values: Any, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(type(value) is int and 0 < value < 2**31 for value in values)
    )


def _death(process: subprocess.Popen[bytes]) -> str:
    """How a process ended."""
    try:
        code = process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        return "it says nothing more"
    if code < 0:
        return f"it ends the process that runs it, by {signal.Signals(-code).name}"
    return f"it ends the process that runs it, with exit code {code}"


def _end(process: subprocess.Popen[bytes], said: IO[bytes], place: tempfile.TemporaryDirectory[str]) -> None:
    """End a worker, and what is left of it."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, said):
        if pipe is not None:
            pipe.close()
    place.cleanup()
