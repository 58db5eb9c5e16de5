"""Mixing of two images of a batch into one: mixup and CutMix."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Mixing:
    """The random mixing of the images of a batch, each with its neighbour.

    Mixup (Zhang et al., ICLR 2018, arXiv 1710.09412) adds two images, ``share * first + (1 - share) * second``. CutMix
    (Yun et al., ICCV 2019, arXiv 1905.04899) replaces a rectangle of the first image by that of the second. The labels
    become the probabilities of the classes: the shares of the two images. All images of a batch are mixed in the same
    way, with a share from the Beta distribution; if both are chosen, each batch gets one of them at random.

    Attributes:
        classes: the number of classes, K.
        mixup: the parameter of mixup's Beta(mixup, mixup), above 0; ``None`` for no mixup.
        cutmix: the parameter of CutMix's Beta(cutmix, cutmix), above 0; ``None`` for no CutMix.

    Example:
        >>> import torch
        >>> from factor_transfer.data.augment.mixing import Mixing
        >>> images, labels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 2, 1])
        >>> mixed, probabilities = Mixing(classes=3, mixup=0.2)(images, labels, seed=0)
        >>> mixed.shape, probabilities.shape, probabilities.sum(1)
        (torch.Size([4, 3, 8, 8]), torch.Size([4, 3]), tensor([1., 1., 1., 1.]))
    """

    classes: int
    mixup: float | None = None
    cutmix: float | None = None

    def __call__(self, images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Mix each image with its neighbour; the last image of an odd number stays as it is.

        Args:
            images: the images, uint8 (B, C, H, W).
            labels: their classes, int64 (B,).
            seed: the seed of this batch, from which the random numbers are drawn.

        Returns:
            The mixed images, uint8 (B, C, H, W), and the probabilities of the classes, float32 (B, K).
        """
        random = np.random.default_rng(seed)
        cut = self.mixup is None or (self.cutmix is not None and random.random() < 0.5)
        parameter = self.cutmix if cut else self.mixup
        assert parameter is not None
        share = float(random.beta(parameter, parameter))
        neighbour = _neighbours(len(labels)).to(labels.device)
        if cut:
            top, bottom, left, right = _rectangle(images.shape[-2:], 1 - share, random.random(2))
            mixed = images.clone()
            mixed[..., top:bottom, left:right] = images[neighbour, :, top:bottom, left:right]
            share = 1 - (bottom - top) * (right - left) / (images.shape[-2] * images.shape[-1])
        else:
            mixed = torch.lerp(images[neighbour].float(), images.float(), share).round_().to(images.dtype)
        probabilities = F.one_hot(labels, self.classes).float()
        return mixed, torch.lerp(probabilities[neighbour], probabilities, share)


def _neighbours(count: int) -> Tensor:
    """The other image of each pair: 1, 0, 3, 2, …, int64 (count,); the last image of an odd number is its own."""
    others = torch.arange(count) ^ 1
    return others.clamp(max=count - 1)


def _rectangle(size: tuple[int, ...], area: float, centre: "np.ndarray") -> tuple[int, int, int, int]:
    """A rectangle with an image's shape around a random centre, cut off at the borders: top, bottom, left, right.

    Args:
        size: the height and width of the image, in pixels.
        area: the share of the image's area, in 0..1, before the rectangle is cut off.
        centre: the centre, in 0..1 of the height and of the width.
    """
    edges = []
    for length, place in zip(size, centre, strict=True):
        half, middle = length * area**0.5 / 2, length * place
        edges += [round(max(middle - half, 0)), round(min(middle + half, length))]
    top, bottom, left, right = edges
    return top, bottom, left, right
