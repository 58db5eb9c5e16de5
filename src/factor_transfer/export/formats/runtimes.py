"""Running exported files by their runtimes, in a separate process; see ``worker``."""

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

START_S = 120.0  # the time limit for importing a runtime, in seconds
LOAD_S = 60.0  # the time limit for loading a file and running one image
IMAGE_S = 2.0  # the time limit for each further image
_LONGEST_LINE = 2**16  # the largest size of the JSON in a reply, in bytes
_DTYPES = {"uint8": torch.uint8, "float32": torch.float32}


class ExportedFile:
    """An exported file that is loaded in a worker process, which ends with this object.

    All replies of the worker are validated, since the file may be damaged or malicious.

    Args:
        path: the path of a ``.pte`` or ``.onnx`` file.

    Attributes:
        shape: the shape of one image, (C, H, W).
        dtype: the type of the input, uint8 or float32.
        dynamic: whether the file takes several images at once.
        classes: the number of logits per image.

    Raises:
        InputError: if the file is damaged or of another kind, crashes its process, or takes too long.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._place = tempfile.TemporaryDirectory(prefix="factor-transfer-")
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process runs)
        # A session of its own, so that Ctrl-C only reaches this process, which then ends the worker.
        self._process = subprocess.Popen(
            [*command(), "serve", str(path.resolve()), str(LOAD_S)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            cwd=self._place.name,
            env=environment(),
            start_new_session=True,
        )
        self.close = weakref.finalize(self, _end, self._process, self._stderr, self._place)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        for pipe in (self._process.stdin, self._process.stdout):
            os.set_blocking(pipe.fileno(), False)
        self._buffer = b""  # received, but not used yet
        self._reply(START_S)
        reply = self._reply(LOAD_S)
        shape, dtype, classes = (reply.get(key) for key in ("shape", "dtype", "classes"))
        if not (_are_sizes(shape, 3) and dtype in _DTYPES and _are_sizes([classes], 1)):
            raise self._refused("its description of its input is invalid")
        assert isinstance(shape, list)
        assert isinstance(classes, int)
        self.shape, self.dtype, self.classes = tuple(shape), _DTYPES[str(dtype)], classes
        self.dynamic = reply.get("dynamic") is True

    def run(self, images: Tensor) -> Tensor:
        """Compute the logits (B, K) of any number of images (B, C, H, W).

        Raises:
            InputError: if the images have another shape or type, or the file returns something else than logits,
                crashes its process or takes too long.
        """
        if tuple(images.shape[1:]) != self.shape or images.dtype != self.dtype:
            raise InputError(
                f"{self.path} takes {self.dtype} images of {list(self.shape)}, not {images.dtype} of "
                f"{list(images.shape[1:])}"
            )
        limit = LOAD_S + IMAGE_S * len(images)
        self._send(struct.pack("<Q", len(images)), time.monotonic() + limit)
        self._send(images.contiguous().numpy().data.cast("B"), time.monotonic() + limit)
        reply = self._reply(limit)
        if reply.get("shape") != [len(images), self.classes]:
            raise self._refused(f"for {len(images)} images it returns logits of shape {reply.get('shape')}")
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
            except BrokenPipeError:  # the worker has ended, possibly with an error message
                return

    def _reply(self, seconds: float) -> dict[str, Any]:
        """The next reply of the worker."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            if len(self._buffer) > _LONGEST_LINE:
                raise self._refused("the reply of its process is invalid")
            self._receive(deadline)
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            reply = json.loads(line)
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            raise self._refused("the reply of its process is invalid")
        if "error" in reply:
            raise self._refused(str(reply["error"]))
        return reply

    def _read(self, count: int, seconds: float) -> bytes:
        deadline = time.monotonic() + seconds
        while len(self._buffer) < count:
            self._receive(deadline)
        content, self._buffer = self._buffer[:count], self._buffer[count:]
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
        self._buffer += content

    def _wait(self, pipe: IO[bytes], event: int, deadline: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, event)
            if not selector.select(max(deadline - time.monotonic(), 0)):
                raise self._refused("it takes too long; its process was ended")

    def _refused(self, reason: str) -> InputError:
        """End the worker; the error contains what the runtime printed about the fault, or else ``reason``."""
        if self.close.alive:
            self._process.kill()
            self._process.wait()
            self._stderr.seek(0)
            lines = self._stderr.read(2**20).decode(errors="replace").splitlines()
            # ExecuTorch prints lines like "[program.cpp:153] …".
            printed = [line.partition("] ")[2] for line in lines if line.startswith("[") and "cpuinfo" not in line]
            self.close()
            reason = "; ".join([line for line in printed if line][:2]) or reason
        task = "run" if hasattr(self, "classes") else "loaded"
        return InputError(f"{self.path} cannot be {task}; it is damaged, or of another kind: {printable(reason)[:300]}")


def command() -> list[str]:
    """The command that starts the worker.

    ``-P`` prevents imports from the script's folder, whose modules have the names of libraries, and from the working
    directory.
    """
    return [sys.executable, "-P", "-B", str(Path(worker.__file__).resolve())]


def environment() -> dict[str, str]:
    """The environment of the worker, whose child processes do not import from the working directory either."""
    return {**os.environ, "PYTHONSAFEPATH": "1"}


def open_file(path: Path) -> ExportedFile:
    """Load an exported file.

    Args:
        path: the path of a ``.pte`` or ``.onnx`` file.

    Raises:
        InputError: if the file is missing, damaged or of another kind, or its runtime is not installed.
    """
    if not path.is_file():
        raise InputError(f"the file {path} does not exist")
    format = next((name for name, ending in ENDINGS.items() if path.suffix == ending), None)
    if format is None:
        raise InputError(f"{path} is not an exported network: its name must end in {' or '.join(ENDINGS.values())}")
    need(format)
    return ExportedFile(path)


def run_over(file: ExportedFile, batches: Iterable[Tensor]) -> Tensor:
    """The logits (N, K) of all images in batches (B, C, H, W).

    Args:
        file: the exported file.
        batches: the batches of images.
    """
    return torch.cat([file.run(batch) for batch in batches])


def costs(files: Sequence[Path]) -> list[dict[str, float]]:
    """Measure the latency and memory of exported files, one after another; see ``worker.probe``.

    Args:
        files: the paths of the files, which have the same format.

    Raises:
        InputError: if a file cannot be run.
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
            output, errors = process.communicate(timeout=START_S + 2 * LOAD_S * len(files))
        except subprocess.TimeoutExpired:
            raise InputError(f"{files[0]} cannot be measured: it takes too long") from None
        finally:
            _kill_group(process)
    lines = errors.decode(errors="replace").splitlines()
    try:
        measured: list[dict[str, float]] = json.loads(output)
    except ValueError:
        reason = lines[-1] if lines else _death(process)
        raise InputError(f"{files[0]} cannot be measured: {printable(reason)[:300]}") from None
    return measured


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and its child processes."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # they have ended already
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _are_sizes(values: Any, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(type(value) is int and 0 < value < 2**31 for value in values)
    )


def _death(process: subprocess.Popen[bytes]) -> str:
    """A description of how a worker ended."""
    try:
        code = process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        return "its process does not reply any more"
    if code < 0:
        return f"it ends the process that runs it, by {signal.Signals(-code).name}"
    return f"it ends the process that runs it, with exit code {code}"


def _end(process: subprocess.Popen[bytes], stderr: IO[bytes], folder: tempfile.TemporaryDirectory[str]) -> None:
    """End a worker, and remove its files."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, stderr):
        if pipe is not None:
            pipe.close()
    folder.cleanup()
