"""A work dir is one process's at a time, or that of several which one launcher has started together."""

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
from factor_transfer.files import write_json
from factor_transfer.pipeline.records import Holder, read_record

_LOCK, _HOLDER = ".lock", ".holder.json"
# What lets a job in that the holder has started and waits for: see ``compare --slurm``.
_ON_BEHALF = "FACTOR_TRANSFER_HOLDER"


class _Held(NamedTuple):
    """A lock, and the inode that its file had when it was taken."""

    lock: FileLock
    inode: int


_held: dict[Path, _Held | None] = {}  # None: another process has the lock, on behalf of which this one works


@contextmanager
def hold(work_dir: Path) -> Iterator[None]:
    """Keep other processes out of a folder, which is made if it is not there. May be nested.

    The system takes the lock back when this process ends, however it ends.

    Raises:
        InputError: another process holds it, and is named; or the folder cannot be written.
    """
    folder = work_dir.resolve()
    if folder in _held:
        yield
        return
    # Of several processes the first one has the lock; it cannot be handed to others, nor need be.
    collectives.on_rank_zero(lambda: _take(work_dir))
    _held.setdefault(folder, None)
    try:
        yield
    finally:
        held = _held.pop(folder)
        if held is not None:
            os.environ.pop(_ON_BEHALF, None)
            held.lock.release()


def still_held(work_dir: Path) -> None:
    """See that the lock of a folder that this process holds is still there; one whose file was removed is taken again.

    Raises:
        InputError: another process has taken it meanwhile.
    """
    folder = work_dir.resolve()
    held = _held.get(folder)
    if held is None:
        return
    try:
        there = os.stat(work_dir / _LOCK).st_ino  # noqa: PTH116
    except OSError:
        there = None
    if there == held.inode:
        return
    holder = _holder(work_dir)
    held.lock.release(force=True)
    _held[folder] = None
    os.environ.pop(_ON_BEHALF, None)
    try:
        _take(work_dir)
    except InputError as error:
        raise InputError(
            f"{work_dir / _LOCK} was removed while this process held it, and another one has taken the work dir: "
            f"{_named(holder)}. This one stops; what it has written down so far is kept"
        ) from error


def holder_token() -> str | None:
    """What lets another process into the work dirs that this one holds, see ``act_for``."""
    return os.environ.get(_ON_BEHALF)


def act_for(token: str | None) -> None:
    """Let this process into the work dirs of the process that has started it, and waits for it.

    Args:
        token: the other process's ``holder_token``.
    """
    if token is not None:
        os.environ[_ON_BEHALF] = token


def _take(work_dir: Path) -> None:
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        holder = _holder(work_dir)
        if holder is not None and holder.token is not None and holder.token == os.environ.get(_ON_BEHALF):
            return
        lock = FileLock(work_dir / _LOCK, timeout=0)
        lock.acquire()
        token = str(uuid.uuid4())
        write_json(work_dir / _HOLDER, _description() | {"token": token})
    except Timeout:
        raise InputError(
            f"work dir {work_dir} is in use by {_named(holder)}; wait for it, or give another --work-dir"
        ) from None
    except OSError as error:
        raise InputError(f"cannot use work dir {work_dir}: {error.strerror}") from error
    os.environ[_ON_BEHALF] = token
    _held[work_dir.resolve()] = _Held(lock, os.stat(work_dir / _LOCK).st_ino)  # noqa: PTH116


def _description() -> dict[str, Any]:
    return {
        "process": os.getpid(),
        "host": platform.node(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": " ".join(sys.argv),
    }


def _holder(work_dir: Path) -> Holder | None:
    """What the last holder wrote of itself; nothing, if it is damaged, for it is only for a message."""
    try:
        return read_record(work_dir / _HOLDER, Holder)
    except InputError:
        return None


def _named(holder: Holder | None) -> str:
    if holder is None:
        return "another process"
    description = f"process {holder.process} on {holder.host}, since {holder.since} ({holder.command})"
    return printable(description)
