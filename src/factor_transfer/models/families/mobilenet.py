"""MobileNetV2 (Sandler et al.: Inverted Residuals and Linear Bottlenecks, CVPR 2018), for small images.

This is the CIFAR variant of Tian et al. (Contrastive Representation Distillation, ICLR 2020). It differs from the paper
in three ways: one of the five stages that halve the resolution does not (32 x 32 pixels end as 2 x 2), the activation
is ReLU instead of ReLU6, and the first block has its first 1x1 convolution although it does not widen. The modules have
the names of torchvision's. Blocks end without an activation, as in the paper; ``features`` returns the last stage's
output after its ReLU.
"""

from typing import Annotated

from annotated_types import Ge, Gt
from torch import Tensor, nn

from factor_transfer.models.families.resnet import initialize

# Channels, number of blocks and stride of each stage, from table 2 of the paper but with stride 1 in the second stage.
_STAGES = ((16, 1, 1), (24, 2, 1), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
_STEM, _HEAD = 32, 1280


def _activated(in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution, batch norm and ReLU: (B, in, H, W) -> (B, channels, H / stride, W / stride)."""
    convolution = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU())


class InvertedResidual(nn.Module):
    """A widening 1x1, a depthwise 3x3 and a narrowing 1x1 convolution, with a shortcut if the shape does not change."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = in_channels * expansion
        self.conv = nn.Sequential(
            _activated(in_channels, wide, 1),
            _activated(wide, wide, 3, stride, groups=wide),
            nn.Conv2d(wide, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.residual = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, channels, H / stride, W / stride)."""
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """MobileNetV2: a stem, inverted residuals, a 1x1 convolution, global average pooling and a linear layer.

    Args:
        num_classes: the number of classes.
        in_channels: the number of channels of the images.
        width: the factor that the channels of stem and blocks are multiplied by. Those of the last convolution are
            multiplied only if it is above 1, as in the paper.
        expansion: the factor by which a block widens its input. The first block does not widen it.
    """

    def __init__(self, num_classes: int, in_channels: int, width: float, expansion: int) -> None:
        super().__init__()
        channels = max(1, int(_STEM * width))
        layers: list[nn.Module] = [_activated(in_channels, channels, 3, 2)]
        for index, (base, blocks, stride) in enumerate(_STAGES):
            out_channels = max(1, int(base * width))
            for position in range(blocks):
                block_expansion = expansion if index else 1
                layers.append(InvertedResidual(channels, out_channels, 1 if position else stride, block_expansion))
                channels = out_channels
        head = int(_HEAD * max(1.0, width))
        self.features = nn.Sequential(*layers, _activated(channels, head, 1))
        self.classifier = nn.Sequential(nn.Linear(head, num_classes))
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """The logits (B, num_classes) of normalised images (B, in_channels, H, W)."""
        return self.classifier(self.features(images).mean((2, 3)))


def mobilenet_v2(
    num_classes: int,
    in_channels: int,
    *,
    width: Annotated[float, Gt(0)] = 0.5,
    expansion: Annotated[int, Ge(1)] = 6,
) -> MobileNetV2:
    """Build a MobileNetV2 for small images. The defaults are the student of Tian et al., T = 6 and w = 0.5.

    Args:
        num_classes: the number of classes.
        in_channels: the number of channels of the images.
        width: the factor that the paper's channels are multiplied by.
        expansion: the expansion factor, t in the paper and T in Tian et al.
    """
    return MobileNetV2(num_classes, in_channels, width, expansion)


MOBILENETS = {"mobilenet_v2": mobilenet_v2}
