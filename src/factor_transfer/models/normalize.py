"""From raw images to what a network was trained on."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from factor_transfer.errors import InputError, shown


def check_statistics(mean: Sequence[float], std: Sequence[float]) -> None:
    """See that images can be normalised.

    Args:
        mean: of each channel, 0..1.
        std: of each channel, 0..1.

    Raises:
        InputError: a value is not finite, or so small or large that float32 cannot divide by it; there are not as many
            of one as of the other.
    """
    means, stds = (torch.tensor(value, dtype=torch.float64) for value in (mean, std))
    if means.shape != stds.shape or means.ndim != 1 or not len(means):
        raise InputError(f"mean and std need a value a channel each, got {shown(list(mean))} and {shown(list(std))}")
    scale, shift = (1 / (255 * stds)).float(), (means / stds).float()
    if not (stds > 0).all() or not (scale.isfinite() & (scale > 0) & shift.isfinite()).all():
        raise InputError(
            f"images cannot be normalised by mean {shown(list(mean))} and std {shown(list(std))}: finite numbers are "
            "needed, those of std above 0"
        )


class Normalize(nn.Module):
    """Subtract the mean and divide by the standard deviation, channel by channel.

    It belongs to a network, not to the data: teacher and student may have been trained on different
    statistics, and both are given the same raw batch. It has no weights and leaves nothing in a state dict.

    Args:
        mean: of each channel, 0..1.
        std: of each channel, 0..1.

    Raises:
        InputError: see ``check_statistics``.
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
        """uint8 (B, C, H, W), 0..255 -> float32, mean 0 and variance 1 over the training images."""
        return torch.addcmul(self.shift, images.to(self.scale.dtype), self.scale)
