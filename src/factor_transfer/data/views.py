"""Fixed views: instead of ever new crops and flips, each image has a few, so that what a teacher says can be kept."""

import torch

from factor_transfer.data.augment import Augment
from factor_transfer.data.seeds import epoch_seed


class Views:
    """V views of each training image.

    Args:
        augment: what they are drawn from.
        images: N, in the training split.
        count: V, of each image.
        seed: they are a function of ``augment``, N and this.
    """

    def __init__(self, augment: Augment, images: int, count: int, seed: int = 0) -> None:
        self.count = count
        drawn = [
            augment.draw(images, torch.Generator().manual_seed(epoch_seed(seed, view))).short() for view in range(count)
        ]
        self.draws = torch.stack(drawn)  # (V, N, 3), see ``Augment.draw``
