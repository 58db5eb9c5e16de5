"""The end of a command: bad input and stop signals give one message and an exit code, without a traceback."""

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
    "the disk or your quota is full: free some space, or give a folder elsewhere (--work-dir, --out). All complete "
    "files are saved, and the same command resumes from there"
)
_COURTESY_S = 3.0
# Errors of PyTorch when it has lost the connection to another process.
_LOST = re.compile(r"(?i)gloo|nccl|connection (closed|reset)|by peer|tcpstore|broken pipe")


@contextmanager
def report_errors(debug: bool, last: bool = False) -> Iterator[None]:
    """Run a command, and turn its errors into one message and an exit code: 2 for bad input, 128 + N for signal N.

    Args:
        debug: raise errors again, so that their traceback is shown.
        last: whether the process ends with the command. If so, a later signal also ends it with an exit code, and a
            process that was stopped by a signal does not wait for its threads.
    """
    code = 0
    if last:
        atexit.register(signals.disregard)  # the function that is registered first runs last
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
        except Interrupted as error:  # raised before signals were ignored
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
    """Run the exit functions and end this process, without waiting for its threads, which may be blocked forever."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    atexit._run_exitfuncs()
    os._exit(code)


def _report(error: Exception | Interrupted, debug: bool) -> int:
    """Print the message of an error and return the exit code. An error of the program itself is raised again."""
    message = _message(error)
    stopped = isinstance(error, Interrupted)
    if message is None or (debug and not stopped):
        raise error
    process = rank()
    if process:
        # The first process has most likely printed the same message, and the launcher is about to end this one.
        time.sleep(_COURTESY_S)
        message = f"process {process}: {message}"
    errors = Console(stderr=True, highlight=False)
    errors.print("Stopped:" if stopped else "Error:", style="bold yellow" if stopped else "bold red", end=" ")
    errors.print(printable(message, newlines=True), markup=False, soft_wrap=True)
    return 128 + error.signal if isinstance(error, Interrupted) else 2


def _message(error: BaseException) -> str | None:
    """The message of an error that the user can do something about; ``None`` for an error of the program itself."""
    if isinstance(error, InputError | Interrupted | OSError):  # OSError: a full disk, a folder without write permission
        cause = error if isinstance(error, OSError) else error.__cause__
        if isinstance(cause, OSError) and cause.errno in _FULL:
            problem = (
                f"cannot write {cause.filename}: {cause.strerror}" if error is cause and cause.filename else str(error)
            )
            return f"{problem}; {_ROOM}"
        return str(error)
    if not isinstance(error, Exception):
        return None
    if is_of_memory(error):
        return "out of memory; a smaller batch_size, network or image size needs less"
    if isinstance(error, RuntimeError) and _LOST.search(str(error)) and launch_info().world > 1:
        return f"lost the other processes ({first_line(error)}); the checkpoints are saved"
    return None
