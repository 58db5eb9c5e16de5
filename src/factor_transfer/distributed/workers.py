"""Helper processes that start safely and end with the process that started them."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import ModuleType
from typing import Any

from factor_transfer.distributed.signals import STOP_SIGNALS


def worker_context(*preload: str) -> Any:
    """The multiprocessing context from which helper processes are started.

    Helpers are started by a fork server, or spawned on systems without one. A fork of this process would inherit the
    locks of its other threads (those of the progress bar and PyTorch), which may be held.

    Args:
        preload: the modules that the fork server imports once for all helpers.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    return context


@contextmanager
def starting_workers() -> Iterator[None]:
    """A context in which helper processes start safely.

    They do not run the main script of this process again, whose definitions they do not need. And the working directory
    is not on their import path. Helpers are started by ``python -c``, for which Python would put it first, so that a
    file torch.py there would be imported instead of PyTorch.

    Stop signals are blocked in what is started, until ``begin_helper``: a Ctrl-C reaches all processes of a terminal,
    and would end the fork server with a traceback.
    """
    main, safe_path = sys.modules["__main__"], os.environ.get("PYTHONSAFEPATH")
    if "forkserver" in multiprocessing.get_all_start_methods():
        resource_tracker.ensure_running()  # which unblocks signals after its start, so not within this context
    former = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS) if hasattr(signal, "pthread_sigmask") else None
    sys.modules["__main__"] = ModuleType("__main__")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if safe_path is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = safe_path
        if former is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)


def begin_helper() -> None:
    """Begin a helper process: it receives signals, and ends when the process that started it has ended."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    threading.Thread(target=_wait_for, args=(multiprocessing.parent_process(),), daemon=True).start()


def _wait_for(parent: multiprocessing.process.BaseProcess) -> None:
    # PyTorch watches the id of the parent process, but that is the fork server, which lives as long as its workers.
    parent.join()
    os._exit(1)
