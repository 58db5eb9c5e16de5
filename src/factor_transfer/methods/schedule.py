"""Schedules of the terms' weights during the training of a student."""

import math
from typing import Literal

Schedule = Literal["constant", "linear", "cosine"]


def weight_factor(schedule: Schedule, epoch: int, epochs: int) -> float:
    """The factor that the weights of all terms are multiplied by in an epoch.

    Args:
        schedule: ``"constant"``; ``"linear"``, which falls from 1 to 0; or ``"cosine"``, which falls along half a
            cosine, so that it stays near 1 at first and near 0 in the end.
        epoch: the epoch, counted from 0.
        epochs: the number of epochs of the whole training. The factor would be 0 in the epoch after the last one.

    Returns:
        The factor, above 0 and at most 1.

    Example:
        >>> from factor_transfer.methods.schedule import weight_factor
        >>> [weight_factor("linear", epoch, epochs=4) for epoch in range(4)]
        [1.0, 0.75, 0.5, 0.25]
    """
    done = epoch / epochs
    if schedule == "linear":
        return 1 - done
    if schedule == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    return 1.0
