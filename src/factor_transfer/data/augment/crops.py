"""Random crops and flips of whole batches, and the settings of all random changes of images."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class Augment:
    """The random augmentation of the training images.

    Attributes:
        crop_padding: the width of the black border, in pixels, that is added to an image before a window of the image's
            size is cropped at a random position. 4 is usual for 32×32 images (He et al. 2016).
        flip: whether to flip images horizontally with probability 1/2.
        student: ``"strong"`` changes the images of the student further, see ``StrongAugment``. Its teacher sees them
            without these changes.
        mixup: the parameter of mixup's Beta distribution for the student's batches, such as 0.2, see ``Mixing``. The
            teacher answers for the mixed images.
        cutmix: the same for CutMix, such as 1.

    Example:
        >>> import torch
        >>> from factor_transfer.data import Augment
        >>> augment = Augment(crop_padding=4, flip=True)
        >>> draws = augment.draw(2, torch.Generator().manual_seed(0))
        >>> augment.apply(torch.zeros(2, 3, 32, 32), draws).shape
        torch.Size([2, 3, 32, 32])
    """

    crop_padding: Annotated[int, Ge(0), Le(1024)] = 0
    flip: bool = False
    student: Literal["strong"] | None = None
    mixup: Annotated[float, Gt(0)] | None = None
    cutmix: Annotated[float, Gt(0)] | None = None

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw the random numbers for ``count`` images: int64 (count, 3), with rows (top, left, flipped)."""
        offsets = torch.randint(0, 2 * self.crop_padding + 1, (count, 2), generator=generator)
        flipped = torch.randint(0, 2, (count, 1), generator=generator)
        return torch.cat([offsets, flipped * self.flip], dim=1)

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Crop and flip ``images`` (B, C, H, W) according to ``draws`` (B, 3), preserving shape, dtype and device."""
        if not self.crop_padding and not self.flip:
            return images
        height, width = images.shape[-2:]
        top, left, flipped = draws.unbind(1)  # (B,) each
        rows = top[:, None] + torch.arange(height, device=images.device)  # (B, H)
        columns = torch.arange(width, device=images.device).expand(len(images), width)
        columns = torch.where(flipped[:, None].bool(), columns.flip(1), columns) + left[:, None]  # (B, W)
        padded = F.pad(images, [self.crop_padding] * 4)
        batch = torch.arange(len(images), device=images.device)
        # A single gather; the channels are last in its result because the indexed axes are not adjacent.
        cropped = padded[batch[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # (B, H, W, C)
        return cropped.permute(0, 3, 1, 2)


# The settings of ``Augment`` that change only the batches of the student.
OF_STUDENT = {"student", "mixup", "cutmix"}
