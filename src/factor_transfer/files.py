"""Files that are written whole or not at all, and read without trusting them.

Weights are safetensors, or PyTorch files that are read with ``weights_only=True``. Neither can run code.
"""

import errno
import hashlib
import json
import math
import os
import re
import secrets
import stat
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, Self, TypeGuard

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from factor_transfer.errors import InputError, first_line

State = dict[str, Tensor]

# What may stand in the place of a file, and would have who opens it wait for ever, or act on a device.
_SPECIAL = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO (named pipe)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)

_LARGEST_JSON = 2**26  # bytes
_DEEPEST_JSON = 50


def open_regular(path: Path) -> BufferedReader:
    """The file at ``path``, opened for reading; it must be a regular file, links are followed.

    Nothing here waits: a FIFO is not opened, and if one takes the file's place in between, opening it does not block.

    Raises:
        InputError: there is something else in the place of the file.
        OSError: there is nothing, or it may not be read.
    """
    check_regular(path, path.stat().st_mode)
    # Windows has no O_NONBLOCK; there it has O_BINARY.
    flags = (getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY"))
    handle = os.open(path, os.O_RDONLY | sum(flags))
    try:
        check_regular(path, os.fstat(handle).st_mode)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def check_regular(path: Path, mode: int) -> None:
    """See that a regular file is at ``path``.

    Args:
        path: for the message.
        mode: of what is there, with its links followed: ``path.stat().st_mode``.

    Raises:
        InputError: it is something else, such as a FIFO, which who opens it may wait for without end.
    """
    if not stat.S_ISREG(mode):
        kind = next((words for is_kind, words in _SPECIAL if is_kind(mode)), "something else")
        raise InputError(f"{path}: is {kind}, expected a regular file; remove it, or put the file in its place")


def write_atomic(path: Path, content: bytes, previous: Path | None = None) -> None:
    """Write a file such that a kill, or a power cut, at any moment leaves the old one or the new one, never a part.

    A link stays one: what it leads to is replaced. What exists and is no regular file, such as ``/dev/null`` or a pipe,
    is written into.

    Args:
        path: the file.
        content: of it.
        previous: what the old one is called from then on; it is replaced otherwise.

    Raises:
        OSError: it cannot be written; its ``filename`` is the path.
    """
    with _naming(path):
        if _is_written_through(path):
            _write_through(path, content)
            return
        path = path.resolve() if path.is_symlink() else path
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            # The system takes from the mode what the umask says.
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if previous is not None and path.exists():
                path.replace(previous)
            temporary.replace(path)
            _sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """While a file is written, a system's error names it: that of a full disk names none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    except RuntimeError as error:  # a link that leads to itself
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from error


def _is_written_through(path: Path) -> bool:
    """Whether a path names a device, a pipe or an open file (``/dev/stdout``), and not a place in a folder."""
    if os.path.abspath(path).startswith(("/dev/", "/proc/")) and path.exists():  # noqa: PTH100 (links are not resolved)
        return True
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:  # it is not there yet, which the system says again where it matters
        return False


def _write_through(path: Path, content: bytes) -> None:
    sys.stdout.flush()  # which it may be
    handle = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(handle, view) :]
    finally:
        os.close(handle)


def remove_unfinished(folder: Path) -> None:
    """Remove what a kill has left of files that were being written."""
    for path in folder.glob(".*"):
        if path.is_file():
            path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Have the disk remember the names in a folder, too; where a system cannot say that of folders, it need not."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON, whole or not at all."""
    write_atomic(path, (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: it is missing or damaged; it is larger, or nested more deeply, than what is written here; it has
            numbers that are not finite, or text that no file can hold.
    """
    try:
        with open_regular(path) as file:
            text = file.read(_LARGEST_JSON + 1)
        if len(text) > _LARGEST_JSON:
            raise ValueError(f"it has more than {_LARGEST_JSON:,} bytes")
        content = json.loads(text.decode("utf-8"), parse_constant=_finite, parse_float=_finite)
        level = [content]
        for _ in range(_DEEPEST_JSON):
            tables = [
                [*part, *part.values()] if isinstance(part, dict) else part
                for part in level
                if isinstance(part, dict | list)
            ]
            level = [part for table in tables for part in table]
            for part in level:
                if isinstance(part, str):
                    part.encode()
        if any(isinstance(part, dict | list) for part in level):
            raise RecursionError
        return content
    except RecursionError:  # whoever follows it down would fail, too
        raise InputError(f"cannot read {path}: it is nested too deeply") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"cannot read {path}: {error}") from error


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it has a number that is not finite, {text}")
    return value


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def save_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a state dict as safetensors."""
    content = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    write_atomic(path, safetensors.torch.save(content))


def read_weights(path: Path) -> State:
    """Read a state dict: safetensors, or a PyTorch file that holds tensors and nothing else.

    Raises:
        InputError: missing, truncated or corrupted file, or one that holds something else.
    """
    content = read_file(path)
    if not is_state(content):
        raise InputError(f"weights {path} must be a state dict: a dict from parameter names to tensors")
    return content


def is_state(content: Any) -> TypeGuard[State]:
    """Whether this is a dict from names to tensors."""
    return isinstance(content, dict) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    )


class _Inert:
    """Stands in a file's content for an object that is not wanted: whatever it is given, it forgets."""

    def __new__(cls, *args: Any) -> Self:
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_file(path: Path, inert: Iterable[str] = ()) -> Any:
    """Read a file of weights, whatever it holds beside them: tensors, numbers, strings, in dicts and lists.

    Args:
        path: safetensors, or a PyTorch file.
        inert: full names of types and functions that the file may name besides, such as ``numpy.dtype``. None of them
            is called: what they would have made is replaced by an empty object.

    Raises:
        InputError: missing, truncated or corrupted file, or one that names other code.
    """
    try:
        with open_regular(path) as file:
            if path.suffix == ".safetensors":
                return safetensors.torch.load(file.read())
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    # PyTorch never compresses what it writes, but unpacks whatever it is given.
                    if sum(entry.file_size for entry in archive.infolist()) > os.fstat(file.fileno()).st_size:
                        raise ValueError("it unpacks to more than its size")
            file.seek(0)
            with torch.serialization.safe_globals([(_Inert, name) for name in inert]):
                return torch.load(file, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read weights {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise InputError(f"weights {path} are damaged: {error}") from error
    except Exception as error:  # damaged zip archives and pickles fail in many ways
        raise InputError(f"weights {path} are damaged, or hold more than tensors: {_refused(error)}") from error


def load_into(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a state dict, strictly.

    Raises:
        InputError: layers that are missing, unknown, of another shape or kind of number, told apart by name; or weights
            that are not finite as the model holds them, or variances below zero.
    """
    check_layers(model, state, path)
    own = model.state_dict()
    # As the model holds them: beyond what float32 can say, float64 weights become infinite.
    held = {key: state[key].to(value.dtype) for key, value in own.items()}
    _refuse(path, "are not finite", [key for key, value in held.items() if not value.isfinite().all()])
    variances = [key for key in held if key.rpartition(".")[2] == "running_var"]
    _refuse(path, "have variances below zero", [key for key in variances if (held[key] < 0).any()])
    model.load_state_dict(held)


def check_layers(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """See that a state dict has a model's layers, whose values are not looked at.

    Raises:
        InputError: layers that are missing, unknown, of another shape or kind of number, told apart by name.
    """
    own = model.state_dict()
    faults = [f"missing: {key}" for key in own if key not in state]
    faults += [f"not in the model: {key}" for key in state if key not in own]
    faults += [fault for key, value in own.items() if key in state and (fault := _misfit(key, state[key], value))]
    if faults:
        shown = "\n  ".join(faults[:8])
        more = f"\n  … and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise InputError(f"weights {path} do not fit {type(model).__name__}:\n  {shown}{more}")


def _misfit(key: str, given: Tensor, own: Tensor) -> str:
    """Why a tensor of a file cannot stand for one of a model; empty, if it can."""
    if given.layout != torch.strided or given.is_quantized or given.device.type == "meta":
        return f"{key}: no plain tensor in the file"
    if given.shape != own.shape:
        return f"{key}: shape {tuple(given.shape)} in the file, {tuple(own.shape)} in the model"
    kinds = [value.is_complex() + 2 * value.is_floating_point() for value in (given, own)]
    whole = own.dtype != torch.bool and not kinds[1]  # old files count batches in other kinds of numbers
    if kinds[0] == kinds[1] or (whole and torch.equal(given.to(own.dtype).to(given.dtype), given)):
        return ""
    return f"{key}: {given.dtype} in the file, {own.dtype} in the model"


def _refuse(path: Path, what: str, keys: list[str]) -> None:
    if keys:
        raise InputError(f"weights {path} {what}: {', '.join(keys[:3])}{', …' if keys[3:] else ''}")


def _refused(error: Exception) -> str:
    """Why PyTorch refused a file. Its own message advises to run what is in it; this names what that is."""
    found = re.search(r"GLOBAL (\S+) w", str(error))
    return f"{found[1]} is in it; write a file of the state dict alone" if found else first_line(error)
