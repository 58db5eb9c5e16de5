"""Seeds for the epochs and steps of a training."""

import numpy as np


def epoch_seed(seed: int, *place: int) -> int:
    """A seed for one place in a training, such as an epoch, or an epoch and a step.

    The seeds are hashed, so that neighbouring places have unrelated random numbers.

    Args:
        seed: the seed of the training.
        place: the numbers that identify the place, such as the epoch and the step.
    """
    return int(np.random.SeedSequence([seed, *place]).generate_state(1, np.uint64)[0] >> 1)
