"""From raw images to what a network was trained on."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """Subtract the mean and divide by the standard deviation, channel by channel.

    It belongs to a network, not to the data: teacher and student may have been trained on different
    statistics, and both are given the same raw batch. It has no weights and leaves nothing in a state dict.

    Args:
        mean: of each channel, 0..1.
        std: of each channel, 0..1.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        means, stds = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (mean, std))
        self.register_buffer("scale", (1 / (255 * stds)).float(), persistent=False)
        self.register_buffer("shift", (-means / stds).float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W), 0..255 -> float32, mean 0 and variance 1 over the training images."""
        return torch.addcmul(self.shift, images.to(self.scale.dtype), self.scale)
