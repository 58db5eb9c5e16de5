"""Normalisation of raw images by the statistics that a network was trained with."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from factor_transfer.errors import InputError, shown


def check_statistics(mean: Sequence[float], std: Sequence[float]) -> None:
    """Check that images can be normalised by a mean and standard deviation.

    Args:
        mean: the mean of each channel, for pixels from 0 to 1.
        std: the standard deviation of each channel, for pixels from 0 to 1.

    Raises:
        InputError: if a value is not finite, or so small or large that float32 cannot divide by it, or if the numbers
            of values differ.
    """
    means, stds = (torch.tensor(value, dtype=torch.float64) for value in (mean, std))
    if means.shape != stds.shape or means.ndim != 1 or not len(means):
        raise InputError(
            f"mean and std need one value per channel each, but got {shown(list(mean))} and {shown(list(std))}"
        )
    scale, shift = (1 / (255 * stds)).float(), (means / stds).float()
    if not (stds > 0).all() or not (scale.isfinite() & (scale > 0) & shift.isfinite()).all():
        raise InputError(
            f"images cannot be normalised by mean {shown(list(mean))} and std {shown(list(std))}: all values must be "
            "finite, and those of std above 0"
        )


class Normalize(nn.Module):
    """A module that subtracts the mean of each channel and divides by its standard deviation.

    Each network has its own, because teacher and student may have been trained with different statistics and get the
    same raw batch. The module has no weights and no entries in a state dict.

    Args:
        mean: the mean of each channel, for pixels from 0 to 1.
        std: the standard deviation of each channel, for pixels from 0 to 1.

    Raises:
        InputError: if images cannot be normalised by these values, see ``check_statistics``.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        check_statistics(mean, std)
        means, stds = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (mean, std))
        self.register_buffer("scale", (1 / (255 * stds)).float(), persistent=False)
        self.register_buffer("shift", (-means / stds).float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalise raw images, uint8 (B, C, H, W) from 0 to 255, to float32 images of the same shape.

        Raises:
            InputError: if the images do not have one channel per value of ``mean``.
        """
        if images.dim() < 3 or images.shape[-3] != self.scale.shape[0]:
            raise InputError(
                f"Normalize has statistics of shape {tuple(self.scale.shape[:1])}, one value per channel, but the "
                f"images (B, C, H, W) have shape {tuple(images.shape)}"
            )
        return torch.addcmul(self.shift, images.to(self.scale.dtype), self.scale)
