"""How a command ends: bad input and a wish to stop in one message and an exit code, not in a traceback."""

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from factor_transfer.distributed.launch import launch_info
from factor_transfer.distributed.signals import at_once
from factor_transfer.errors import InputError, Interrupted, first_line, is_of_memory

_COURTESY_S = 3.0
# What PyTorch says where a process that it talks to has gone.
_LOST = re.compile(r"(?i)gloo|nccl|connection (closed|reset)|by peer|tcpstore|broken pipe")


@contextmanager
def ending(debug: bool) -> Iterator[None]:
    """Run a command: 2 is the exit code of bad input, 128 and its number that of a signal.

    Args:
        debug: show the traceback nevertheless.
    """
    try:
        with at_once():
            yield
    except (Exception, Interrupted) as error:
        message = _message(error)
        if message is None or debug:
            raise
        rank = launch_info().rank
        if rank:
            # The first process has most likely said the same already, and the launcher is about to end this one.
            time.sleep(_COURTESY_S)
            message = f"process {rank}: {message}"
        stopped = isinstance(error, Interrupted)
        errors = Console(stderr=True, highlight=False)
        errors.print("Stopped:" if stopped else "Error:", style="bold yellow" if stopped else "bold red", end=" ")
        # A name from the disk, or of the command line, may hold bytes that are no text.
        message = message.encode(errors="backslashreplace").decode()
        errors.print(message, markup=False, soft_wrap=True)
        sys.exit(128 + error.signal if isinstance(error, Interrupted) else 2)


def _message(error: BaseException) -> str | None:
    """What a person can do something about, in words; ``None`` for what is a fault of the program."""
    if isinstance(error, InputError | Interrupted | OSError):  # OSError: a full disk, a folder that may not be written
        return str(error)
    if not isinstance(error, Exception):
        return None
    if is_of_memory(error):
        return "out of memory; a smaller batch_size, network or image size needs less"
    if launch_info().world > 1 and isinstance(error, RuntimeError) and _LOST.search(str(error)):
        return f"lost the other processes ({first_line(error)}); what was written down is kept"
    return None
