"""Files that are written whole or not at all, and read without trusting them.

Weights are safetensors, or PyTorch files that are read with ``weights_only=True``. Neither can run code.
"""

import hashlib
import json
import os
import re
import stat
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
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

    Args:
        path: the file.
        content: of it.
        previous: what the old one is called from then on; it is replaced otherwise.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)  # mkstemp's files are the owner's alone
        if previous is not None and path.exists():
            path.replace(previous)
        Path(temporary).replace(path)
        _sync_folder(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


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
        InputError: it is missing or damaged; it is larger, or nested more deeply, than what is written here.
    """
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise ValueError(f"it has more than {_LARGEST_JSON:,} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
        level = [content]
        for _ in range(_DEEPEST_JSON):
            tables = [
                part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list)
            ]
            level = [part for table in tables for part in table]
        if level:
            raise RecursionError
        return content
    except RecursionError:  # whoever follows it down would fail, too
        raise InputError(f"cannot read {path}: it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from error


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


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
        if path.suffix == ".safetensors":
            return safetensors.torch.load(path.read_bytes())
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                # PyTorch never compresses what it writes, but unpacks whatever it is given.
                if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                    raise ValueError("it unpacks to more than its size")
        with torch.serialization.safe_globals([(_Inert, name) for name in inert]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"cannot read weights {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise InputError(f"weights {path} are damaged: {error}") from error
    except Exception as error:  # damaged zip archives and pickles fail in many ways
        raise InputError(f"weights {path} are damaged, or hold more than tensors: {_refused(error)}") from error


def load_into(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a state dict, strictly.

    Raises:
        InputError: layers that are missing, unknown or of another shape, told apart by name; or not finite.
    """
    own = model.state_dict()
    faults = [f"missing: {key}" for key in own if key not in state]
    faults += [f"not in the model: {key}" for key in state if key not in own]
    faults += [
        f"{key}: shape {tuple(state[key].shape)} in the file, {tuple(value.shape)} in the model"
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    ]
    if faults:
        shown = "\n  ".join(faults[:8])
        more = f"\n  … and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise InputError(f"weights {path} do not fit {type(model).__name__}:\n  {shown}{more}")
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise InputError(f"weights {path} are not finite: {', '.join(broken[:3])}{', …' if broken[3:] else ''}")
    model.load_state_dict(dict(state))


def _refused(error: Exception) -> str:
    """Why PyTorch refused a file. Its own message advises to run what is in it; this names what that is."""
    found = re.search(r"GLOBAL (\S+) w", str(error))
    return f"{found[1]} is in it; write a file of the state dict alone" if found else first_line(error)
