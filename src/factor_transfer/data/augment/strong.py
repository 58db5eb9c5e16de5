"""Strong random changes of the images that a student sees."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# The geometric and the photometric changes of an image, of which one each is chosen at random.
GEOMETRIC = "none", "rotate", "shear_x", "shear_y", "translate_x", "translate_y", "scale"
PHOTOMETRIC = "none", "brightness", "contrast", "saturation", "posterize", "solarize"
DRAWS = 7  # the random numbers of an image: two choices, two strengths, and the size and the place of a square


def change(images: Tensor, draws: Tensor) -> Tensor:
    """Change each image in shape, then in colour, and blank out a square of it.

    The changes and their largest strengths resemble those of RandAugment (Cubuk et al., CVPR Workshops 2020,
    arXiv 1909.13719) and Cutout (DeVries, Taylor 2017, arXiv 1708.04552), but each image gets one of ``GEOMETRIC`` and
    one of ``PHOTOMETRIC``, so that a whole batch is changed at once.

    Args:
        images: the images, uint8 (B, C, H, W).
        draws: the random numbers, in 0..1, (B, ``DRAWS``).

    Returns:
        The changed images, uint8 (B, C, H, W).
    """
    shape, colour, strength, amount, side, top, left = draws.unbind(1)
    x = F.grid_sample(
        images.float(),
        F.affine_grid(_transforms(shape, 2 * strength - 1), list(images.shape), align_corners=False),
        align_corners=False,
    )
    x = _recoloured(x.round_(), (colour * len(PHOTOMETRIC)).long(), 2 * amount - 1)
    hidden = _squares(images.shape[-2], side, top)[:, :, None] & _squares(images.shape[-1], side, left)[:, None, :]
    x = x.masked_fill(hidden[:, None], 127.0)
    return x.round_().clamp_(0, 255).to(torch.uint8)


def _transforms(choice: Tensor, strength: Tensor) -> Tensor:
    """The affine transforms (B, 2, 3) of random choices in 0..1 and strengths in -1..1."""
    chosen = (choice * len(GEOMETRIC)).long()

    def only(name: str, value: Tensor) -> Tensor:
        return torch.where(chosen == GEOMETRIC.index(name), value, torch.zeros_like(value))

    angle = only("rotate", strength * math.radians(30))
    scale = 1 + only("scale", 0.25 * strength)
    rows = [
        (scale * angle.cos(), only("shear_x", 0.3 * strength) - angle.sin(), only("translate_x", 0.5 * strength)),
        (only("shear_y", 0.3 * strength) + angle.sin(), scale * angle.cos(), only("translate_y", 0.5 * strength)),
    ]
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def _recoloured(x: Tensor, chosen: Tensor, strength: Tensor) -> Tensor:
    """Images (B, C, H, W), in 0..255, with one change of their colours each; strengths are in -1..1."""
    factor = 1 + 0.8 * strength[:, None, None, None]
    positive = strength.abs()[:, None, None, None]
    step = 2.0 ** (1 + (3.999 * positive).floor())  # 2, 4, 8 or 16
    grey, mean = x.mean(1, keepdim=True), x.mean((1, 2, 3), keepdim=True)
    results = {
        "brightness": x * factor,
        "contrast": mean + (x - mean) * factor,
        "saturation": grey + (x - grey) * factor,
        "posterize": (x / step).floor() * step,
        "solarize": torch.where(x >= 255 * (1 - 0.6 * positive), 255 - x, x),
    }
    for name, result in results.items():
        x = torch.where((chosen == PHOTOMETRIC.index(name))[:, None, None, None], result, x)
    return x


def _squares(length: int, side: Tensor, place: Tensor) -> Tensor:
    """Whether each position of a line (B, length) is in a square: at most half as long, centred at a random place."""
    distance = (torch.arange(length, device=side.device) + 0.5 - place[:, None] * length).abs()
    return distance < side[:, None] * length / 4


class StrongAugment(nn.Module):
    """Random strong changes of raw images in training mode; in evaluation mode, the images stay as they are.

    A student that learns a teacher's answers for images that the teacher sees unchanged learns to give the same answer
    for many variants of an image, also where images have no labels. The random numbers are drawn from PyTorch's
    generator, which training seeds in each step, so that a resumed training uses the same ones. Like those of dropout,
    they depend on the number of processes.

    Example:
        >>> import torch
        >>> from factor_transfer.data.augment.strong import StrongAugment
        >>> StrongAugment()(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([2, 3, 32, 32])
    """

    def forward(self, images: Tensor) -> Tensor:
        """Change uint8 images (B, C, H, W), see ``change``."""
        if not self.training:
            return images
        # Drawn on the CPU, so that all devices use the same numbers.
        return change(images, torch.rand(len(images), DRAWS).to(images.device))
