"""The lock of a work dir: one process uses it at a time, or several processes that one launcher started together."""

import os
import platform
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from factor_transfer.distributed import collectives
from factor_transfer.errors import InputError, printable
from factor_transfer.files import check_names, write_json
from factor_transfer.pipeline.records import Holder, read_record

_LOCK, _HOLDER = ".lock", ".holder.json"
# The environment variable that admits the jobs that the holder starts and waits for: see ``compare --slurm``.
_ON_BEHALF = "FACTOR_TRANSFER_HOLDER"


class _Held(NamedTuple):
    """A lock, and the inode of its file at the time of acquisition."""

    lock: FileLock
    inode: int


_held: dict[Path, _Held | None] = {}  # None: the lock belongs to another process, and this one works on its behalf


@contextmanager
def hold(work_dir: Path) -> Iterator[None]:
    """Keep other processes out of a folder, which is created if it does not exist. Calls may be nested.

    The operating system releases the lock when this process ends, even if it is killed.

    Args:
        work_dir: the folder.

    Raises:
        InputError: if another process holds the lock (the message names it), or the folder cannot be written.
    """
    folder = work_dir.resolve()
    if folder in _held:
        yield
        return
    # Among several processes, only the one of rank 0 holds the lock: it cannot be shared, and need not be.
    collectives.on_rank_zero(lambda: _acquire(work_dir))
    _held.setdefault(folder, None)
    try:
        yield
    finally:
        held = _held.pop(folder)
        if held is not None:
            os.environ.pop(_ON_BEHALF, None)
            held.lock.release()


def still_held(work_dir: Path) -> None:
    """Check that this process still holds the lock of a folder, and acquire it again if its file was removed.

    Args:
        work_dir: the folder. Nothing is done if this process does not hold its lock.

    Raises:
        InputError: if another process has acquired the lock in the meantime.
    """
    folder = work_dir.resolve()
    held = _held.get(folder)
    if held is None:
        return
    try:
        inode = os.stat(work_dir / _LOCK).st_ino  # noqa: PTH116
    except OSError:
        inode = None
    if inode == held.inode:
        return
    holder = _holder(work_dir)
    held.lock.release(force=True)
    _held[folder] = None
    os.environ.pop(_ON_BEHALF, None)
    try:
        _acquire(work_dir)
    except InputError as error:
        raise InputError(
            f"{work_dir / _LOCK} was removed while this process held it, and the work dir is now in use by "
            f"{_describe(holder)}. This process stops; what it has saved so far is not lost"
        ) from error


def holder_token() -> str | None:
    """The token that admits another process to the work dirs that this one holds; see ``act_for``."""
    return os.environ.get(_ON_BEHALF)


def act_for(token: str | None) -> None:
    """Admit this process to the work dirs of the process that started it and waits for it.

    Args:
        token: the ``holder_token`` of the other process; ``None`` if it holds no work dir.
    """
    if token is not None:
        os.environ[_ON_BEHALF] = token


def _acquire(work_dir: Path) -> None:
    check_names(work_dir)
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        holder = _holder(work_dir)
        if holder is not None and holder.token is not None and holder.token == os.environ.get(_ON_BEHALF):
            return
        lock = FileLock(work_dir / _LOCK, timeout=0)
        lock.acquire()
        token = str(uuid.uuid4())
        write_json(work_dir / _HOLDER, _this_process() | {"token": token})
    except Timeout:
        raise InputError(
            f"work dir {work_dir} is in use by {_describe(holder)}; wait until it ends, or give another --work-dir"
        ) from None
    except OSError as error:
        raise InputError(f"cannot use work dir {work_dir}: {error.strerror}") from error
    os.environ[_ON_BEHALF] = token
    _held[work_dir.resolve()] = _Held(lock, os.stat(work_dir / _LOCK).st_ino)  # noqa: PTH116


def _this_process() -> dict[str, Any]:
    return {
        "process": os.getpid(),
        "host": platform.node(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": printable(" ".join(sys.argv)),
    }


def _holder(work_dir: Path) -> Holder | None:
    """The last holder's description of itself; ``None`` if it is missing or damaged, as it is only used in messages."""
    try:
        return read_record(work_dir / _HOLDER, Holder)
    except InputError:
        return None


def _describe(holder: Holder | None) -> str:
    if holder is None:
        return "another process"
    return printable(f"process {holder.process} on {holder.host}, since {holder.since} ({holder.command})")
