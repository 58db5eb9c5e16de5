"""What asks a process to stop: a person (SIGINT), a system (SIGTERM), Slurm before it takes a node away (SIGUSR1)."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from factor_transfer.errors import Interrupted

_ASKING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
REQUEUE = getattr(signal, "SIGUSR1", 0)  # what Slurm sends, if so asked, before it takes a node away


class StopRequest:
    """Whether, and by which signal, this process was asked to stop; 0 while it was not."""

    signal = 0


@contextmanager
def at_once() -> Iterator[None]:
    """While it lasts, each of these signals raises ``Interrupted``, wherever the process is."""
    with _handled(_leave):
        yield


@contextmanager
def defer_signals() -> Iterator[StopRequest]:
    """While it lasts, the first of these signals is only noted, and a second one raises ``Interrupted``."""
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        if request.signal:
            _leave(number, frame)
        request.signal = number

    with _handled(note):
        yield request


def requeue() -> str:
    """Ask Slurm to start this job again later; says what came of it."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return "there is no Slurm job to requeue"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"Slurm could not be asked to requeue job {job}: {error.strerror}"
    return f"job {job} is requeued" if not done.returncode else f"job {job} was not requeued: {done.stderr.strip()}"


def _leave(number: int, frame: FrameType | None) -> None:
    raise Interrupted("what is whole is kept; the same command goes on from there", number)


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # which alone may say what a signal does
        yield
        return
    # What is ignored stays so: a shell's background jobs are not for Ctrl-C, what nohup starts not for a hang-up.
    former = {
        number: signal.signal(number, handler) for number in _ASKING if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, before in former.items():
            signal.signal(number, before)
