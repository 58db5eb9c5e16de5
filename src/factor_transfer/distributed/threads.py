"""The number of threads with which a computation is fastest, and computations in several threads."""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from torch import nn
from torch.nn import functional as F

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)

_BETTER = 1.1  # the smallest speed-up for which fewer threads are used, since short measurements are noisy
_LAYERS, _ROUNDS = 5, 3


def is_choice_free() -> bool:
    """Whether there are several threads to choose from, and the user has not set their number (OMP_NUM_THREADS)."""
    return torch.get_num_threads() > 1 and "OMP_NUM_THREADS" not in os.environ


def measure_threads(seconds: Callable[[], float]) -> dict[int, float]:
    """Measure a computation with all of PyTorch's threads, then with half of them each time, down to one.

    The measurement ends when fewer threads are slower. At the end, PyTorch has as many threads as before.

    Args:
        seconds: a function that runs the computation, and returns the time that it took.

    Returns:
        The time by the number of threads.
    """
    before = count = torch.get_num_threads()
    found: dict[int, float] = {}
    try:
        while count:
            torch.set_num_threads(count)
            found[count] = seconds()
            if found[count] > _BETTER * min(found.values()):
                break
            count //= 2
    finally:
        torch.set_num_threads(before)
    return found


def fastest(found: Mapping[int, float]) -> int:
    """The number of threads that is fastest, where fewer are only used if they are clearly faster.

    Args:
        found: the time by the number of threads, see ``measure_threads``.
    """
    counts = sorted(found, reverse=True)
    chosen = counts[0]
    for count in counts[1:]:
        if _BETTER * found[count] < found[chosen]:
            chosen = count
    return chosen


def convolutions() -> float:
    """The median time, in seconds, of a forward and backward pass through a few layers of a small network."""
    images, weight = torch.ones(16, 16, 32, 32), torch.full((16, 16, 3, 3), 0.01, requires_grad=True)
    durations = []
    for _ in range(1 + _ROUNDS):  # the first round is a warm-up
        began = time.perf_counter()
        out = images
        for _ in range(_LAYERS):
            out = F.relu(F.conv2d(out, weight, padding=1))
        out.sum().backward()
        durations.append(time.perf_counter() - began)
    return sorted(durations[1:])[_ROUNDS // 2]


@contextmanager
def side_by_side(count: int) -> Iterator[Callable[[Callable[[T], object], Iterable[T]], None]]:
    """A context with a function that calls a function for each of several values, in several threads.

    In each thread, PyTorch's operators have one thread. Unlike the threads of an operator, these threads do not wait
    for each other, and the results do not depend on their number. If the context is left early, calls that have begun
    continue for a moment, but no others begin.

    Args:
        count: the number of threads. A single one is the thread of the caller.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) if count > 1 else None

    def call(function: Callable[[T], object], values: Iterable[T]) -> None:
        for _ in (pool.map if pool else map)(function, values):
            pass  # raises the error of a call, if there is one

    try:
        yield call
    finally:
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
        torch.set_num_threads(before)


class OnePerThread(Generic[M]):
    """A network for each thread, since the hooks that return its features belong to one pass at a time.

    Args:
        network: the network, which the thread that creates this object uses. Other threads use copies.
        copy: the function that copies it.
    """

    def __init__(self, network: M, copy: Callable[[M], M]) -> None:
        self._network, self._copy = network, copy
        self._local = threading.local()
        self._local.network = network

    def __call__(self) -> M:
        """The network of the current thread."""
        if not hasattr(self._local, "network"):
            self._local.network = self._copy(self._network)
        network: M = self._local.network
        return network
