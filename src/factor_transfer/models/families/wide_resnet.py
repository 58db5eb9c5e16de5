"""Wide residual networks (Zagoruyko, Komodakis: Wide Residual Networks, BMVC 2016).

Their blocks normalise and activate before they convolve, so that ``block1`` and ``block2`` return sums that no
activation has seen: the next block's first layer is that. The end of the last stage is ``relu``, behind ``bn1``.
The modules are named as the field names them, so that weights from elsewhere fit.
"""

from functools import partial
from typing import Annotated

from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

from factor_transfer.models.families.resnet import initialize, projection


class PreActivationBlock(nn.Module):
    """Twice normalisation, ReLU and a 3x3 convolution, and a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        same = stride == 1 and in_channels == channels
        self.convShortcut = None if same else projection(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, channels, H / stride, W / stride)."""
        active = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        # A projection is given the activated map, as in the paper's code; else the sum itself is passed on.
        return out + (x if self.convShortcut is None else self.convShortcut(active))


class WideStage(nn.Module):
    """Blocks of one width, of which the first may halve height and width."""

    def __init__(self, in_channels: int, channels: int, depth: int, stride: int) -> None:
        super().__init__()
        blocks = [PreActivationBlock(in_channels, channels, stride)]
        blocks += [PreActivationBlock(channels, channels, 1) for _ in range(depth - 1)]
        self.layer = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, channels, H / stride, W / stride)."""
        return self.layer(x)


class WideResNet(nn.Module):
    """One convolution, three stages, a last activation, global average pooling, one linear layer.

    Args:
        depth: 6n + 4; a stage has n blocks.
        widening: how many times as many channels as the stem the first stage has.
        num_classes: outputs.
        in_channels: of the images.
        width: channels of the stem.
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
        self.relu = nn.ReLU()  # a module, so that the last stage's map can be tapped behind it
        self.fc = nn.Linear(4 * wide, num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_channels, H, W), normalised -> logits (B, num_classes)."""
        x = self.block3(self.block2(self.block1(self.conv1(images))))
        return self.fc(self.relu(self.bn1(x)).mean((2, 3)))


def wide_resnet(
    depth: int, widening: int, num_classes: int, in_channels: int, *, width: Annotated[int, Ge(1)] = 16
) -> WideResNet:
    """WRN-depth-widening.

    Args:
        depth: 6n + 4.
        widening: the factor k of the paper.
        num_classes: outputs.
        in_channels: of the images.
        width: channels of the stem; the stages have k, 2k and 4k times as many.
    """
    return WideResNet(depth, widening, num_classes, in_channels, width)


WIDE_RESNETS = {
    f"wrn_{depth}_{widening}": partial(wide_resnet, depth, widening)
    for depth, widening in ((16, 1), (16, 2), (40, 1), (40, 2))
}
