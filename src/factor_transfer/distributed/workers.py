"""Helper processes: how they are started, and how they end with the process that started them."""

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


def worker_context(preload: str) -> Any:
    """The multiprocessing context that helper processes are started from.

    Helpers come from a fork server, or are spawned where there is none: what this process is forked into would inherit
    the locks of its other threads (the progress bar's, PyTorch's), in whatever state they are.

    Args:
        preload: the module that the fork server imports once, so that its helpers need not.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    return context


@contextmanager
def starting_workers() -> Iterator[None]:
    """While it lasts, helper processes start safely.

    They do not run this process's main script again, for definitions that none of them needs. And the working
    directory is not on their path: Python puts it first for `python -c`, which is how helpers start, and a file
    torch.py there would be imported in PyTorch's place.
    """
    main, safe = sys.modules["__main__"], os.environ.get("PYTHONSAFEPATH")
    sys.modules["__main__"] = ModuleType("__main__")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if safe is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = safe


def end_with_parent() -> None:
    """In a helper: end it when the process that started it is gone, however that ended."""
    threading.Thread(target=_wait_for, args=(multiprocessing.parent_process(),), daemon=True).start()


def _wait_for(parent: multiprocessing.process.BaseProcess) -> None:
    # PyTorch's own watch is for the parent's id, which is the fork server's, and that lives as long as its workers do.
    parent.join()
    os._exit(1)
