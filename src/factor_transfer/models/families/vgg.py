"""Plain convolutional networks (Simonyan, Zisserman: Very Deep Convolutional Networks, ICLR 2015), for small images.

The form for CIFAR of Tian et al. (Contrastive Representation Distillation, ICLR 2020): batch normalisation behind each
convolution, and global average pooling with one linear layer in the place of three. ``block0`` … ``block4`` return
the stages' outputs after their last ReLU. The modules are named as the field names them, so that weights from
elsewhere fit.
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated

from annotated_types import Ge
from torch import Tensor, nn

from factor_transfer.models.families.resnet import initialize

# A map of this height or width is not pooled: smaller ones would leave the 3x3 convolutions little but padding.
_SMALLEST = 4

_WIDTHS = (1, 2, 4, 8, 8)
_DEPTHS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


def _block(in_channels: int, channels: int, depth: int) -> nn.Sequential:
    """``depth`` times a 3x3 convolution, normalisation and ReLU: (B, in, H, W) -> (B, channels, H, W)."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Conv2d(in_channels, channels, 3, 1, 1), nn.BatchNorm2d(channels), nn.ReLU()]
        in_channels = channels
    return nn.Sequential(*layers)


class VGG(nn.Module):
    """Five blocks with max pooling between, global average pooling, one linear layer.

    A map of 4 pixels or fewer a side is not pooled: of 32 x 32 pixels, ``block3`` and ``block4`` both see 4 x 4.

    Args:
        depths: convolutions of each block.
        widths: channels of each block.
        num_classes: outputs.
        in_channels: of the images.
    """

    def __init__(self, depths: Sequence[int], widths: Sequence[int], num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.blocks = len(depths)
        for index, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            if index:
                self.add_module(f"pool{index - 1}", nn.MaxPool2d(2))
            self.add_module(f"block{index}", _block(in_channels, width, depth))
            in_channels = width
        self.classifier = nn.Linear(in_channels, num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, W), normalised -> logits (B, num_classes)."""
        x = images
        for index in range(self.blocks):
            if index and min(x.shape[2:]) > _SMALLEST:
                x = getattr(self, f"pool{index - 1}")(x)
            x = getattr(self, f"block{index}")(x)
        return self.classifier(x.mean((2, 3)))


def vgg(depth: int, num_classes: int, in_channels: int, *, width: Annotated[int, Ge(1)] = 64) -> VGG:
    """VGG with batch normalisation.

    Args:
        depth: 11, 13, 16 or 19 as in the paper, counting the three linear layers that are one here; or 8, which
            Tian et al. add: one convolution a block.
        num_classes: outputs.
        in_channels: of the images.
        width: channels of the first block; the others have two, four, eight and eight times as many.
    """
    return VGG(_DEPTHS[depth], [factor * width for factor in _WIDTHS], num_classes, in_channels)


VGGS = {f"vgg{depth}": partial(vgg, depth) for depth in _DEPTHS}
