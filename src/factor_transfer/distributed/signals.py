"""Signals that request a stop: SIGINT (Ctrl-C), SIGTERM, and SIGUSR1, which Slurm sends before it preempts a job."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from factor_transfer.errors import Interrupted

STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
REQUEUE = getattr(signal, "SIGUSR1", 0)  # sent by Slurm before preemption, if the job requests it

SAVED = "all complete work is saved"


class StopRequest:
    """The signal that requested a stop; 0 if there was none."""

    signal = 0


class _Leaving:
    """Whether a signal has raised ``Interrupted``; ``None`` outside ``raise_on_signals``."""

    now: bool | None = None


@contextmanager
def raise_on_signals(restore: bool = True) -> Iterator[None]:
    """A context in which the first stop signal raises ``Interrupted``, wherever the process is.

    A second signal ends the process immediately. So does the first one where Python would only print the exception and
    continue: in a destructor, or in a callback of the import system.

    Args:
        restore: whether the former handlers are restored at the end. If not, ``end_with`` must be called.
    """
    former = sys.unraisablehook

    def unraisable(args: "sys.UnraisableHookArgs") -> None:
        if isinstance(args.exc_value, Interrupted):
            _quit(args.exc_value.signal, str(args.exc_value))
        former(args)

    sys.unraisablehook, _Leaving.now = unraisable, False
    try:
        with _handled(_leave, restore):
            yield
    finally:
        sys.unraisablehook, _Leaving.now = former, None


@contextmanager
def while_importing() -> Iterator[None]:
    """A context for the imports at the start, in which each stop signal ends the process with a message."""
    with _handled(lambda number, _: _quit(number, "nothing was started")):
        yield


def ignore() -> None:
    """Ignore stop signals from now on, while a message is printed."""
    _set(lambda *_: None)


def end_with(code: int) -> None:
    """Make stop signals end the process silently from now on, when it is about to end anyway.

    Args:
        code: the exit code; 0 selects the exit code of the signal.
    """
    _set(lambda number, _: os._exit(code or 128 + number))


def disregard() -> None:
    """Make the operating system drop stop signals from now on, even during Python's shutdown."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _set(handler: Callable[[int, FrameType | None], object]) -> None:
    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, handler)


def _quit(number: int, message: str) -> None:
    """Print a message and end this process immediately, as a kill would."""
    with contextlib.suppress(OSError):
        os.write(2, f"Stopped: {message}\n".encode())
    os._exit(128 + number)


@contextmanager
def defer_signals() -> Iterator[StopRequest]:
    """A context in which the first stop signal is only recorded in the request, and a second raises ``Interrupted``."""
    request = StopRequest()

    def record(number: int, frame: FrameType | None) -> None:
        if request.signal:
            _leave(number, frame)
        request.signal = number

    with _handled(record):
        yield request


def requeue() -> str:
    """Request that Slurm start this job again later, and return a message about the result."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return "there is no Slurm job to requeue"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"job {job} could not be requeued, because scontrol could not be run: {error.strerror}"
    return f"job {job} was requeued" if not done.returncode else f"job {job} was not requeued: {done.stderr.strip()}"


def _leave(number: int, frame: FrameType | None) -> None:
    if _Leaving.now:
        _quit(number, str(Interrupted(SAVED)))
    if _Leaving.now is not None:
        _Leaving.now = True
    raise Interrupted(SAVED, number)


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None], restore: bool = True) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    # Ignored signals stay ignored, such as SIGINT in a shell's background jobs.
    former = {
        number: signal.signal(number, handler) for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, former_handler in former.items() if restore else ():
            signal.signal(number, former_handler)
