"""How a command ends: bad input and a wish to stop in one message and an exit code, not in a traceback."""

import atexit
import errno
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.console import Console

from factor_transfer.distributed import signals
from factor_transfer.distributed.launch import launch_info, rank
from factor_transfer.errors import InputError, Interrupted, first_line, is_of_memory, printable

_FULL = (errno.ENOSPC, errno.EDQUOT)
_ROOM = (
    "the disk, or your share of it, is full: make room, or give a folder elsewhere (--work-dir, --out). What is whole "
    "is kept, and the same command goes on from there"
)
_COURTESY_S = 3.0
# What PyTorch says where a process that it talks to has gone.
_LOST = re.compile(r"(?i)gloo|nccl|connection (closed|reset)|by peer|tcpstore|broken pipe")


@contextmanager
def report_errors(debug: bool, last: bool = False) -> Iterator[None]:
    """Run a command, and turn its errors into one message and an exit code: 2 for bad input, 128 + N for signal N.

    Args:
        debug: show the traceback of an error nevertheless.
        last: whether the process ends with the command. Then a signal that comes later ends it with an exit code, too,
            and a process that was asked to stop does not wait for its threads.
    """
    code = 0
    if last:
        atexit.register(signals.disregard)  # what is registered first runs last
    with signals.raise_on_signals(restore=not last):
        try:
            try:
                yield
            except SystemExit as leave:
                code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
                raise
            except (Exception, Interrupted) as error:
                signals.ignore()
                code = _report(error, debug)
        except Interrupted as error:  # in the moment before signals are ignored
            signals.ignore()
            code = _report(error, debug)
        finally:
            if last:
                signals.end_with(code)
    if code and last and code > 128:
        _end_now(code)
    if code:
        sys.exit(code)


def _end_now(code: int) -> None:
    """End this process in order, but for threads that wait for what may never come."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    atexit._run_exitfuncs()
    os._exit(code)


def _report(error: Exception | Interrupted, debug: bool) -> int:
    """Print what a person should know of an error; the exit code. A fault of the program is raised again."""
    message = _message(error)
    stopped = isinstance(error, Interrupted)
    if message is None or (debug and not stopped):
        raise error
    own = rank()
    if own:
        # The first process has most likely said the same already, and the launcher is about to end this one.
        time.sleep(_COURTESY_S)
        message = f"process {own}: {message}"
    errors = Console(stderr=True, highlight=False)
    errors.print("Stopped:" if stopped else "Error:", style="bold yellow" if stopped else "bold red", end=" ")
    errors.print(printable(message, newlines=True), markup=False, soft_wrap=True)
    return 128 + error.signal if isinstance(error, Interrupted) else 2


def _message(error: BaseException) -> str | None:
    """What a person can do something about, in words; ``None`` for what is a fault of the program."""
    if isinstance(error, InputError | Interrupted | OSError):  # OSError: a full disk, a folder that may not be written
        cause = error if isinstance(error, OSError) else error.__cause__
        if isinstance(cause, OSError) and cause.errno in _FULL:
            named = (
                f"cannot write {cause.filename}: {cause.strerror}" if error is cause and cause.filename else str(error)
            )
            return f"{named}; {_ROOM}"
        return str(error)
    if not isinstance(error, Exception):
        return None
    if is_of_memory(error):
        return "out of memory; a smaller batch_size, network or image size needs less"
    if isinstance(error, RuntimeError) and _LOST.search(str(error)) and launch_info().world > 1:
        return f"lost the other processes ({first_line(error)}); what was written down is kept"
    return None
