"""Functions that write files atomically, and read files without trusting their content.

Weights are read from safetensors, or from PyTorch files with ``weights_only=True``. Neither can run code.
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

# Kinds of paths that are not regular files. Opening them could block forever or act on a device.
_SPECIAL = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO (named pipe)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)

_MAX_JSON_BYTES = 2**26
_MAX_JSON_DEPTH = 50


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file, or a link to one, for reading.

    It never blocks: a FIFO is not opened, and if one replaces the file between the check and the opening, the opening
    does not wait.

    Raises:
        InputError: if the path is not a regular file.
        OSError: if the file does not exist or may not be read.
    """
    check_regular(path, path.stat().st_mode)
    # Windows has no O_NONBLOCK but needs O_BINARY.
    flags = (getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY"))
    handle = os.open(path, os.O_RDONLY | sum(flags))
    try:
        check_regular(path, os.fstat(handle).st_mode)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def check_regular(path: Path, mode: int) -> None:
    """Check that a path is a regular file and not, for example, a FIFO, which could block its reader forever.

    Args:
        path: the path, for the message of an error.
        mode: the mode of the path with links followed, ``path.stat().st_mode``.

    Raises:
        InputError: if the path is not a regular file.
    """
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _SPECIAL if is_kind(mode)), "a special file")
        raise InputError(f"{path} is {kind}, but a regular file is expected; remove it or replace it by the file")


def write_atomic(path: Path, content: bytes, previous: Path | None = None) -> None:
    """Write a file such that a kill or a power cut at any moment leaves the old file or the new one, never a part.

    A link remains, and its target is replaced. A path that is not a regular file, such as ``/dev/null`` or a pipe, is
    written to directly.

    Args:
        path: the path of the file.
        content: the content of the file.
        previous: the path that an existing file is moved to. If left out, it is overwritten.

    Raises:
        OSError: if the file cannot be written. Its ``filename`` is the path.
    """
    with _errors_name(path):
        if _is_written_through(path):
            _write_through(path, content)
            return
        path = path.resolve() if path.is_symlink() else path
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            # The system removes the bits of the umask from this mode.
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
def _errors_name(path: Path) -> Iterator[None]:
    """A context in which errors of the system name the path. The error of a full disk, for example, does not."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    except RuntimeError as error:  # a link that points to itself
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from error


def _is_written_through(path: Path) -> bool:
    """Whether a path is a device, a pipe or an open file (``/dev/stdout``) and cannot be replaced by another file."""
    if os.path.abspath(path).startswith(("/dev/", "/proc/")) and path.exists():  # noqa: PTH100 (links are not resolved)
        return True
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:  # the file does not exist yet; other errors are raised again when it is written
        return False


def _write_through(path: Path, content: bytes) -> None:
    sys.stdout.flush()  # the path may be standard output
    handle = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(handle, view) :]
    finally:
        os.close(handle)


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files that a kill left in a folder."""
    for path in folder.glob(".*"):
        if path.is_file():
            path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, on systems where folders can be flushed."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON, atomically."""
    write_atomic(path, (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: if the file is missing or damaged, is larger or nested more deeply than any file that this package
            writes, or contains numbers that are not finite or text that cannot be encoded.
    """
    try:
        with open_regular(path) as file:
            text = file.read(_MAX_JSON_BYTES + 1)
        if len(text) > _MAX_JSON_BYTES:
            raise ValueError(f"it has more than {_MAX_JSON_BYTES:,} bytes")
        content = json.loads(text.decode("utf-8"), parse_constant=_finite, parse_float=_finite)
        level = [content]
        for _ in range(_MAX_JSON_DEPTH):
            containers = [
                [*value, *value.values()] if isinstance(value, dict) else value
                for value in level
                if isinstance(value, dict | list)
            ]
            level = [value for container in containers for value in container]
            for value in level:
                if isinstance(value, str):
                    value.encode()
        if any(isinstance(value, dict | list) for value in level):
            raise RecursionError
        return content
    except RecursionError:  # raised by ``json`` for even deeper nesting
        raise InputError(f"cannot read {path}: it is nested too deeply") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"cannot read {path}: {error}") from error


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it contains a number that is not finite, {text}")
    return value


def sha256(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal digits.

    Raises:
        InputError: if the file cannot be read.
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
    """Read a state dict from safetensors, or from a PyTorch file that contains only tensors.

    Raises:
        InputError: if the file is missing, truncated or corrupted, or contains anything else.
    """
    content = read_file(path)
    if not is_state(content):
        raise InputError(f"weights {path} must be a state dict, which is a dict from parameter names to tensors")
    return content


def is_state(content: Any) -> TypeGuard[State]:
    """Whether an object is a dict from names to tensors."""
    return isinstance(content, dict) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    )


class _Inert:
    """A placeholder for an object in a file that is not needed. It ignores all of its arguments and its state."""

    def __new__(cls, *args: Any) -> Self:
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_file(path: Path, inert: Iterable[str] = ()) -> Any:
    """Read a file of weights, which may also contain numbers and strings, in dicts and lists.

    Args:
        path: the path of a safetensors or PyTorch file.
        inert: the full names of types and functions that the file may refer to, such as ``numpy.dtype``. They are not
            called, and the objects that they would create are replaced by placeholders.

    Raises:
        InputError: if the file is missing, truncated or corrupted, or refers to other code.
    """
    try:
        with open_regular(path) as file:
            if path.suffix == ".safetensors":
                return safetensors.torch.load(file.read())
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    # PyTorch writes without compression but reads compressed archives, which could fill the memory.
                    if sum(entry.file_size for entry in archive.infolist()) > os.fstat(file.fileno()).st_size:
                        raise ValueError("its content is larger than the file")
            file.seek(0)
            with torch.serialization.safe_globals([(_Inert, name) for name in inert]):
                return torch.load(file, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read weights {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise InputError(f"weights {path} are damaged: {error}") from error
    except Exception as error:  # damaged zip archives and pickles raise many kinds of exceptions
        raise InputError(f"weights {path} are damaged, or contain more than tensors: {_reason(error)}") from error


def load_into(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a state dict into a model, strictly.

    Raises:
        InputError: if tensors are missing, unknown or of another shape or kind of number; if weights are not finite in
            the model's precision; or if a running variance is negative. The message names the tensors.
    """
    check_layers(model, state, path)
    expected = model.state_dict()
    # In the model's precision, because large float64 weights become infinite in float32.
    converted = {key: state[key].to(value.dtype) for key, value in expected.items()}
    _refuse(path, "are not finite", [key for key, value in converted.items() if not value.isfinite().all()])
    variances = [key for key in converted if key.rpartition(".")[2] == "running_var"]
    _refuse(path, "have variances below zero", [key for key in variances if (converted[key] < 0).any()])
    model.load_state_dict(converted)


def check_layers(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Check that a state dict has the tensors of a model, without a check of their values.

    Raises:
        InputError: if tensors are missing, unknown or of another shape or kind of number. The message names them.
    """
    expected = model.state_dict()
    faults = [f"missing: {key}" for key in expected if key not in state]
    faults += [f"not in the model: {key}" for key in state if key not in expected]
    faults += [fault for key, value in expected.items() if key in state and (fault := _misfit(key, state[key], value))]
    if faults:
        listed = "\n  ".join(faults[:8])
        more = f"\n  … and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise InputError(f"weights {path} do not fit {type(model).__name__}:\n  {listed}{more}")


def _misfit(key: str, given: Tensor, expected: Tensor) -> str:
    """The reason why a tensor of a file cannot replace one of a model; empty if it can."""
    if given.layout != torch.strided or given.is_quantized or given.device.type == "meta":
        return f"{key}: not a dense tensor in the file"
    if given.shape != expected.shape:
        return f"{key}: shape {tuple(given.shape)} in the file, {tuple(expected.shape)} in the model"
    kinds = [value.is_complex() + 2 * value.is_floating_point() for value in (given, expected)]
    integer = expected.dtype != torch.bool and not kinds[1]  # old files store batch counters in other types
    if kinds[0] == kinds[1] or (integer and torch.equal(given.to(expected.dtype).to(given.dtype), given)):
        return ""
    return f"{key}: {given.dtype} in the file, {expected.dtype} in the model"


def _refuse(path: Path, what: str, keys: list[str]) -> None:
    if keys:
        raise InputError(f"weights {path} {what}: {', '.join(keys[:3])}{', …' if keys[3:] else ''}")


def _reason(error: Exception) -> str:
    """The reason why PyTorch refused a file, without PyTorch's advice to run the code in it."""
    found = re.search(r"GLOBAL (\S+) w", str(error))
    return f"it refers to {found[1]}; save only the state dict" if found else first_line(error)
