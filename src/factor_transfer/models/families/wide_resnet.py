"""Wide residual networks (Zagoruyko, Komodakis: Wide Residual Networks, BMVC 2016).

Their blocks apply batch norm and ReLU before each convolution, so ``block1`` and ``block2`` return sums before the
activation, which is in the first layer of the next block. The last stage ends with ``relu``, after ``bn1``. The modules
have their usual names, so that published weights fit.
"""

from functools import partial
from typing import Annotated

from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

from factor_transfer.models.families.resnet import initialize, projection


class PreActivationBlock(nn.Module):
    """A residual block that applies batch norm, ReLU and a 3x3 convolution twice."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        same = stride == 1 and in_channels == channels
        self.convShortcut = None if same else projection(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, channels, H / stride, W / stride)."""
        activated = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        # As in the paper's code, the input of a projection is the activated map, but an identity passes ``x`` on.
        return out + (x if self.convShortcut is None else self.convShortcut(activated))


class WideStage(nn.Module):
    """A stage of blocks with the same width. The first block may halve height and width."""

    def __init__(self, in_channels: int, channels: int, depth: int, stride: int) -> None:
        super().__init__()
        blocks = [PreActivationBlock(in_channels, channels, stride)]
        blocks += [PreActivationBlock(channels, channels, 1) for _ in range(depth - 1)]
        self.layer = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, channels, H / stride, W / stride)."""
        return self.layer(x)


class WideResNet(nn.Module):
    """Wide ResNet: a convolution, three stages, batch norm and ReLU, global average pooling and a linear layer.

    Args:
        depth: the number of layers, 6n + 4, for n blocks per stage.
        widening: the factor k by which the first stage has more channels than the stem.
        num_classes: the number of classes.
        in_channels: the number of channels of the images.
        width: the number of channels of the stem.
    """

    def __init__(self, depth: int, widening: int, num_classes: int, in_channels: int, width: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        wide = widening * width
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.block1 = WideStage(width, wide, blocks, 1)
        self.block2 = WideStage(wide, 2 * wide, blocks, 2)
        self.block3 = WideStage(2 * wide, 4 * wide, blocks, 2)
        self.bn1 = nn.BatchNorm2d(4 * wide)
        self.relu = nn.ReLU()  # a module, so that the activated map of the last stage can be tapped
        self.fc = nn.Linear(4 * wide, num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """The logits (B, num_classes) of normalised images (B, in_channels, H, W)."""
        x = self.block3(self.block2(self.block1(self.conv1(images))))
        return self.fc(self.relu(self.bn1(x)).mean((2, 3)))


def wide_resnet(
    depth: int, widening: int, num_classes: int, in_channels: int, *, width: Annotated[int, Ge(1)] = 16
) -> WideResNet:
    """Build a WRN-depth-widening.

    Args:
        depth: the number of layers, 6n + 4.
        widening: the widening factor k of the paper.
        num_classes: the number of classes.
        in_channels: the number of channels of the images.
        width: the number of channels of the stem. The stages have k, 2k and 4k times as many.
    """
    return WideResNet(depth, widening, num_classes, in_channels, width)


WIDE_RESNETS = {
    f"wrn_{depth}_{widening}": partial(wide_resnet, depth, widening)
    for depth, widening in ((16, 1), (16, 2), (40, 1), (40, 2))
}
