"""Synthetic images for tests: a smooth pattern per class, with noise."""

from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from torch.nn import functional as F

from factor_transfer.data.split import Origin, Source, Split


def load_synthetic(
    *,
    classes: Annotated[int, Ge(2)] = 4,
    train: Annotated[int, Ge(1)] = 64,
    test: Annotated[int, Ge(1)] = 32,
    size: Annotated[int, Ge(1)] = 8,
    channels: Annotated[int, Ge(1)] = 3,
    noise: Annotated[float, Ge(0)] = 0.5,
) -> Source:
    """Synthetic images that a network can learn to classify in seconds.

    Args:
        classes: the number of classes.
        train: the number of training images.
        test: the number of test images.
        size: the height and width of an image, in pixels.
        channels: the number of channels of an image.
        noise: the standard deviation of the noise, relative to that of the patterns.
    """
    generator = np.random.default_rng(0)
    coarse = torch.from_numpy(generator.standard_normal((classes, channels, 3, 3)))
    patterns = F.interpolate(coarse, (size, size), mode="bilinear", align_corners=False)

    def draw(count: int) -> Split:
        labels = torch.arange(count) % classes
        images = patterns[labels] + noise * torch.from_numpy(generator.standard_normal((count, channels, size, size)))
        return Split((128 + 48 * images).clamp(0, 255).to(torch.uint8), labels)

    training, testing = draw(train), draw(test)
    names = tuple(f"pattern {label}" for label in range(classes))
    return Source(names, training, lambda: testing, origin=Origin(test_size=test))
