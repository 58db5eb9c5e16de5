"""What asks a process to stop: a person (SIGINT), a system (SIGTERM), Slurm before it takes a node away (SIGUSR1)."""

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

_ASKING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
REQUEUE = getattr(signal, "SIGUSR1", 0)  # what Slurm sends, if so asked, before it takes a node away


_KEPT = "what is whole is kept; the same command goes on from there"


class StopRequest:
    """Whether, and by which signal, this process was asked to stop; 0 while it was not."""

    signal = 0


class _Leaving:
    """Whether ``Interrupted`` was raised by a signal, and is on its way out; ``None`` while nobody waits for it."""

    now: bool | None = None


@contextmanager
def raise_on_signals(restore: bool = True) -> Iterator[None]:
    """While it lasts, the first of these signals raises ``Interrupted``, wherever the process is.

    A second one ends the process, whatever it waits for. So does the first where Python would print it and forget it:
    in a destructor, or in a callback of the import system.

    Args:
        restore: whether these signals do afterwards what they did before; otherwise, what ``end_with`` says.
    """
    former = sys.unraisablehook

    def unraisable(what: "sys.UnraisableHookArgs") -> None:
        if isinstance(what.exc_value, Interrupted):
            _quit(what.exc_value.signal, _KEPT)
        former(what)

    sys.unraisablehook, _Leaving.now = unraisable, False
    try:
        with _handled(_leave, restore):
            yield
    finally:
        sys.unraisablehook, _Leaving.now = former, None


@contextmanager
def while_importing() -> Iterator[None]:
    """While it lasts, and nothing is begun, each of these signals ends the process, with one message."""
    with _handled(lambda number, _: _quit(number, "nothing was begun")):
        yield


def ignore() -> None:
    """From now on these signals are ignored: a message is being printed."""
    _set(lambda *_: None)


def end_with(code: int) -> None:
    """From now on each of these signals ends the process, which is about to end by itself, without a word.

    Args:
        code: the exit code; 0 stands for that of the signal.
    """
    _set(lambda number, _: os._exit(code or 128 + number))


def disregard() -> None:
    """From now on the system itself drops these signals, also while Python takes itself down."""
    for number in _ASKING:
        signal.signal(number, signal.SIG_IGN)


def _set(handler: Callable[[int, FrameType | None], object]) -> None:
    if threading.current_thread() is threading.main_thread():
        for number in _ASKING:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, handler)


def _quit(number: int, message: str) -> None:
    """End this process; what it had in hand is dropped, as in a kill."""
    with contextlib.suppress(OSError):
        os.write(2, f"Stopped: {message}\n".encode())
    os._exit(128 + number)


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
    if _Leaving.now:
        _quit(number, _KEPT)
    if _Leaving.now is not None:
        _Leaving.now = True
    raise Interrupted(_KEPT, number)


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None], restore: bool = True) -> Iterator[None]:
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
        for number, before in former.items() if restore else ():
            signal.signal(number, before)
