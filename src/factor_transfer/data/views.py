"""Fixed views: a few crops and flips of each image that are used again, so that a teacher's outputs can be cached."""

import torch

from factor_transfer.data.augment.crops import Augment
from factor_transfer.data.seeds import epoch_seed


class Views:
    """The fixed views of the training images.

    Args:
        augment: the augmentation that the views are drawn from.
        images: the number of training images, N.
        count: the number of views per image, V.
        seed: the seed. The views depend only on ``augment``, N and the seed.

    Attributes:
        count: the number of views per image, V.
        draws: the random numbers of the views, int16 (V, N, 3), see ``Augment.draw``.
    """

    def __init__(self, augment: Augment, images: int, count: int, seed: int = 0) -> None:
        self.count = count
        drawn = [
            augment.draw(images, torch.Generator().manual_seed(epoch_seed(seed, view))).short() for view in range(count)
        ]
        self.draws = torch.stack(drawn)  # (V, N, 3)
