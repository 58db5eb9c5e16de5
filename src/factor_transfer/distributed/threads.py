"""The number of threads that this process computes fastest with."""

import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

_BETTER = 1.3  # fewer threads must be so many times as fast, since a measurement of a moment is not exact
_LAYERS, _ROUNDS = 5, 3


def use_fast_threads(seconds: Callable[[], float] | None = None) -> tuple[int, int]:
    """Compute with fewer threads from now on, where that is much faster.

    Threads wait for each other in every layer. Where other programs keep some of the processor's cores busy, or a
    container is given fewer cores than the machine has, the slowest thread holds up all others, and a single thread may
    be ten times as fast.

    Args:
        seconds: measures a piece of work with the present number of threads; some convolutions, if left out.

    Returns:
        The number of threads before and now.
    """
    before = chosen = torch.get_num_threads()
    seconds = seconds or _convolutions
    best = seconds() if before > 1 else 0.0
    count = before // 2
    while count:
        torch.set_num_threads(count)
        took = seconds()
        if took * _BETTER < best:
            best, chosen = took, count
        count //= 2
    torch.set_num_threads(chosen)
    return before, chosen


def _convolutions() -> float:
    """Seconds of some layers as small networks have them, forward and backward; the median of a few rounds."""
    images, weight = torch.ones(16, 16, 32, 32), torch.full((16, 16, 3, 3), 0.01, requires_grad=True)
    took = []
    for _ in range(1 + _ROUNDS):  # the first one warms up
        began = time.perf_counter()
        out = images
        for _ in range(_LAYERS):
            out = F.relu(F.conv2d(out, weight, padding=1))
        out.sum().backward()
        took.append(time.perf_counter() - began)
    return sorted(took[1:])[_ROUNDS // 2]
