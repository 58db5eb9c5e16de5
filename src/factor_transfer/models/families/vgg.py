"""Plain convolutional networks (Simonyan, Zisserman: Very Deep Convolutional Networks, ICLR 2015), for small images.

This is the CIFAR variant of Tian et al. (Contrastive Representation Distillation, ICLR 2020), with a batch norm after
each convolution, and with global average pooling and one linear layer instead of three. ``block0`` … ``block4`` return
the outputs of the stages after their last ReLU. The modules have their usual names, so that published weights fit.
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated

from annotated_types import Ge
from torch import Tensor, nn

from factor_transfer.models.families.resnet import initialize

# Maps of this height or width are not pooled, because the 3x3 convolutions would mostly see padding in smaller maps.
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
    """A sequence of 3x3 convolutions with batch norm and ReLU: (B, in, H, W) -> (B, channels, H, W)."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Conv2d(in_channels, channels, 3, 1, 1), nn.BatchNorm2d(channels), nn.ReLU()]
        in_channels = channels
    return nn.Sequential(*layers)


class VGG(nn.Module):
    """VGG: five blocks with max pooling between them, global average pooling and a linear layer.

    Maps with a height or width of at most 4 are not pooled. For images of 32 x 32 pixels, the maps of ``block3`` and
    ``block4`` are both 4 x 4.

    Args:
        depths: the number of convolutions of each block.
        widths: the number of channels of each block.
        num_classes: the number of classes.
        in_channels: the number of channels of the images.
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
        """The logits (B, num_classes) of normalised images (B, in_channels, H, W)."""
        x = images
        for index in range(self.blocks):
            if index and min(x.shape[2:]) > _SMALLEST:
                x = getattr(self, f"pool{index - 1}")(x)
            x = getattr(self, f"block{index}")(x)
        return self.classifier(x.mean((2, 3)))


def vgg(depth: int, num_classes: int, in_channels: int, *, width: Annotated[int, Ge(1)] = 64) -> VGG:
    """Build a VGG with batch norm.

    Args:
        depth: 11, 13, 16 or 19 as in the paper, which counts three linear layers instead of one; or 8, with one
            convolution per block, as in Tian et al.
        num_classes: the number of classes.
        in_channels: the number of channels of the images.
        width: the number of channels of the first block. The others have two, four, eight and eight times as many.
    """
    return VGG(_DEPTHS[depth], [factor * width for factor in _WIDTHS], num_classes, in_channels)


VGGS = {f"vgg{depth}": partial(vgg, depth) for depth in _DEPTHS}
