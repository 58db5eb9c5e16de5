"""Random crop and flip, a whole batch at a time."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What is done at random to the training images.

    Attributes:
        crop_padding: pixels of black put around an image before a window of its own size is cut out at a
            random place. 4 is usual for 32 x 32 images (He et al. 2016).
        flip: mirror left and right, with probability one half.
    """

    crop_padding: Annotated[int, Ge(0), Le(1024)] = 0
    flip: bool = False

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """The random part for ``count`` images: int64 (count, 3), rows of (top, left, flipped)."""
        offsets = torch.randint(0, 2 * self.crop_padding + 1, (count, 2), generator=generator)
        flipped = torch.randint(0, 2, (count, 1), generator=generator)
        return torch.cat([offsets, flipped * self.flip], dim=1)

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Crop and flip ``images`` (B, C, H, W) as ``draws`` (B, 3) says; same shape, type and device."""
        if not self.crop_padding and not self.flip:
            return images
        height, width = images.shape[-2:]
        top, left, flipped = draws.unbind(1)  # (B,) each
        rows = top[:, None] + torch.arange(height, device=images.device)  # (B, H)
        columns = torch.arange(width, device=images.device).expand(len(images), width)
        columns = torch.where(flipped[:, None].bool(), columns.flip(1), columns) + left[:, None]  # (B, W)
        padded = F.pad(images, [self.crop_padding] * 4)
        batch = torch.arange(len(images), device=images.device)
        # One gather; the channels come last in it because the indexed axes are not adjacent.
        cropped = padded[batch[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # (B, H, W, C)
        return cropped.permute(0, 3, 1, 2)
