"""Seeds for the places of a run."""

import numpy as np


def epoch_seed(seed: int, *place: int) -> int:
    """A seed for one place of one run, such as an epoch, or an epoch and a step.

    It is well mixed, so that neighbours have nothing in common.
    """
    return int(np.random.SeedSequence([seed, *place]).generate_state(1, np.uint64)[0] >> 1)
