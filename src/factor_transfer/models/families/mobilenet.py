"""MobileNetV2 (Sandler et al.: Inverted Residuals and Linear Bottlenecks, CVPR 2018), for small images.

The form for CIFAR of Tian et al. (Contrastive Representation Distillation, ICLR 2020), which departs from the paper
thus: one of the five halvings is left out (32 x 32 pixels end as 2 x 2), the activation is ReLU and not ReLU6, and the
first block has its first 1x1 convolution though it does not widen. The modules are named as torchvision names them.
Blocks end linearly, as the paper has it; ``features`` returns the last stage's output after its ReLU.
"""

from typing import Annotated

from annotated_types import Ge, Gt
from torch import Tensor, nn

from factor_transfer.models.families.resnet import initialize

# Channels, blocks and stride of each stage; the paper's table 2, but with stride 1 in the second.
_STAGES = ((16, 1, 1), (24, 2, 1), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
_STEM, _HEAD = 32, 1280


def _activated(in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, normalisation, ReLU: (B, in, H, W) -> (B, channels, H / stride, W / stride)."""
    convolution = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU())


class InvertedResidual(nn.Module):
    """A 1x1 convolution that widens, a 3x3 one of each channel, a 1x1 one that narrows; a shortcut where it fits."""

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
        """(B, in, H, W) -> (B, channels, H / stride, W / stride)."""
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """Stem, inverted residuals, a 1x1 convolution, global average pooling, one linear layer.

    Args:
        num_classes: outputs.
        in_channels: of the images.
        width: by which the channels of stem and blocks are multiplied; those of the last convolution only if
            it is above 1, as in the paper.
        expansion: how many times as wide as its input a block is inside; the first block is not wider.
    """

    def __init__(self, num_classes: int, in_channels: int, width: float, expansion: int) -> None:
        super().__init__()
        channels = max(1, int(_STEM * width))
        layers: list[nn.Module] = [_activated(in_channels, channels, 3, 2)]
        for index, (factor, blocks, stride) in enumerate(_STAGES):
            out_channels = max(1, int(factor * width))
            for position in range(blocks):
                inside = expansion if index else 1
                layers.append(InvertedResidual(channels, out_channels, 1 if position else stride, inside))
                channels = out_channels
        head = int(_HEAD * max(1.0, width))
        self.features = nn.Sequential(*layers, _activated(channels, head, 1))
        self.classifier = nn.Sequential(nn.Linear(head, num_classes))
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, W), normalised -> logits (B, num_classes)."""
        return self.classifier(self.features(images).mean((2, 3)))


def mobilenet_v2(
    num_classes: int,
    in_channels: int,
    *,
    width: Annotated[float, Gt(0)] = 0.5,
    expansion: Annotated[int, Ge(1)] = 6,
) -> MobileNetV2:
    """MobileNetV2 for small images; by default the student of Tian et al., T = 6 and w = 0.5.

    Args:
        num_classes: outputs.
        in_channels: of the images.
        width: by which the paper's channels are multiplied.
        expansion: the factor t of the paper, T of Tian et al.
    """
    return MobileNetV2(num_classes, in_channels, width, expansion)


MOBILENETS = {"mobilenet_v2": mobilenet_v2}
