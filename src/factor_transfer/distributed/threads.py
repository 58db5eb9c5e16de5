"""The number of threads with which a computation is fastest."""

import os
import time
from collections.abc import Callable, Mapping

import torch
from torch.nn import functional as F

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
