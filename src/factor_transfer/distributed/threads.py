"""The number of threads with which this process is fastest."""

import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

_BETTER = 1.3  # the smallest speed-up for which fewer threads are used, since short measurements are noisy
_LAYERS, _ROUNDS = 5, 3


def use_fast_threads(seconds: Callable[[], float] | None = None) -> tuple[int, int]:
    """Reduce the number of PyTorch's threads if that is much faster.

    Threads wait for each other in every layer. If other programs keep some of the cores busy, or a container has fewer
    cores than the machine, the slowest thread delays all others, and a single thread may be ten times as fast.

    Args:
        seconds: a function that measures the time of a computation; by default, of a few convolutions.

    Returns:
        The numbers of threads before and after.
    """
    before = chosen = torch.get_num_threads()
    seconds = seconds or _convolutions
    best = seconds() if before > 1 else 0.0
    count = before // 2
    while count:
        torch.set_num_threads(count)
        duration = seconds()
        if duration * _BETTER < best:
            best, chosen = duration, count
        count //= 2
    torch.set_num_threads(chosen)
    return before, chosen


def _convolutions() -> float:
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
