"""Functions that write files atomically, and read files without trusting their content."""

import errno
import hashlib
import json
import math
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from factor_transfer.errors import InputError, is_text, printable

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
    # Open files of this process, by their names. Links are not resolved: /dev/stdout is a link to one of /proc.
    open_files = ("/dev/fd/", "/dev/stdout", "/dev/stderr", "/proc/")
    if os.path.abspath(path).startswith(open_files) and path.exists():  # noqa: PTH100
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


def check_name(path: Path) -> None:
    """Check that the name of a file or folder is text, as a recipe and a record can have it.

    Raises:
        InputError: if it is not.
    """
    if not is_text(path.name):
        raise InputError(
            f"{printable(str(path))}: its name is not UTF-8 ({os.fsencode(path.name)!r}); rename it, for example with "
            "convmv"
        )


def check_names(path: Path) -> None:
    """Check that the names of a file or folder and of all folders that contain it are text.

    Raises:
        InputError: if one is not.
    """
    for part in (path.absolute(), *path.absolute().parents):
        check_name(part)


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
