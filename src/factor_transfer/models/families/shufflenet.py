"""ShuffleNets for small images.

Version 1 (Zhang, Zhou, Lin, Sun: ShuffleNet, CVPR 2018) and version 2 (Ma, Zhang, Zheng, Sun: ShuffleNet V2, ECCV
2018), both in the CIFAR variant of Tian et al. (Contrastive Representation Distillation, ICLR 2020), whose stem is a
1x1 convolution that keeps the resolution. ``layer1`` … ``layer3`` return the outputs of the stages after their
activation.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from annotated_types import Gt
from torch import Tensor, nn
from torch.nn import functional as F

from factor_transfer.models.families.resnet import initialize

_STEM = 24
_DEPTHS = (4, 8, 4)
# Channels of the first stage by the number of groups (table 1 of the paper).
_V1_WIDTHS = {1: 144, 2: 200, 3: 240}
# Channels of the stages and of the last convolution by size (table 5 of the paper).
_V2_WIDTHS = {
    "0.5": (48, 96, 192, 1024),
    "1": (116, 232, 464, 1024),
    "1.5": (176, 352, 704, 1024),
    "2": (244, 488, 976, 2048),
}


def shuffled(x: Tensor, groups: int) -> Tensor:
    """The channel shuffle of a map (B, C, H, W), after which each group has channels of every former group."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def _pointwise(in_channels: int, channels: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 1, groups=groups, bias=False)


def _depthwise(channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)


class GroupedUnit(nn.Module):
    """The unit of version 1: grouped 1x1, depthwise 3x3 and grouped 1x1 convolutions, and a shortcut.

    In a unit that halves height and width, the shortcut is average pooling, and its channels are concatenated instead
    of added.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int) -> None:
        super().__init__()
        channels = out_channels - in_channels if stride == 2 else out_channels
        # A quarter of the channels without those of the shortcut, as in Tian et al.
        bottleneck = channels // 4
        self.groups = 1 if in_channels == _STEM else groups  # the stem has too few channels to be grouped
        self.conv1 = _pointwise(in_channels, bottleneck, self.groups)
        self.bn1 = nn.BatchNorm2d(bottleneck)
        self.conv2 = _depthwise(bottleneck, stride)
        self.bn2 = nn.BatchNorm2d(bottleneck)
        self.conv3 = _pointwise(bottleneck, channels, groups)
        self.bn3 = nn.BatchNorm2d(channels)
        self.shortcut = nn.AvgPool2d(3, 2, 1) if stride == 2 else None
        self.relu = nn.ReLU()  # a module, so that its input can be tapped

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H / stride, W / stride)."""
        out = shuffled(F.relu(self.bn1(self.conv1(x))), self.groups)
        # The ReLU after the depthwise convolution is that of Tian et al.; the paper has none.
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + x if self.shortcut is None else torch.cat([out, self.shortcut(x)], 1))


class ShuffleNetV1(nn.Module):
    """ShuffleNet: a stem, three stages, global average pooling and a linear layer.

    Args:
        width: the number of channels of the first stage, a multiple of 4 * ``groups``. The others have twice and four
            times as many.
        groups: the number of groups of the 1x1 convolutions.
        num_classes: the number of classes.
        in_channels: the number of channels of the images.
    """

    def __init__(self, width: int, groups: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = _pointwise(in_channels, _STEM)
        self.bn1 = nn.BatchNorm2d(_STEM)
        channels = _STEM
        for index, depth in enumerate(_DEPTHS):
            units = []
            for position in range(depth):
                units.append(GroupedUnit(channels, width << index, 1 if position else 2, groups))
                channels = width << index
            self.add_module(f"layer{index + 1}", nn.Sequential(*units))
        self.linear = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """The logits (B, num_classes) of normalised images (B, in_channels, H, W)."""
        x = F.relu(self.bn1(self.conv1(images)))
        for index in range(len(_DEPTHS)):
            x = getattr(self, f"layer{index + 1}")(x)
        return self.linear(x.mean((2, 3)))


class SplitUnit(nn.Module):
    """The unit of version 2: 1x1, depthwise 3x3 and 1x1 convolutions of one half of the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = _pointwise(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = _depthwise(half, 1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = _pointwise(half, half)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        shortcut, out = x.chunk(2, 1)
        out = F.relu(self.bn1(self.conv1(out)))
        out = self.bn2(self.conv2(out))
        out = F.relu(self.bn3(self.conv3(out)))
        return shuffled(torch.cat([shortcut, out], 1), 2)


class DownUnit(nn.Module):
    """The unit of version 2 that halves height and width. All channels pass through both branches."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.conv1 = _depthwise(in_channels, 2)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = _pointwise(in_channels, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = _pointwise(in_channels, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = _depthwise(half, 2)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = _pointwise(half, half)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H / 2, W / 2)."""
        left = self.bn1(self.conv1(x))
        left = F.relu(self.bn2(self.conv2(left)))
        right = F.relu(self.bn3(self.conv3(x)))
        right = self.bn4(self.conv4(right))
        right = F.relu(self.bn5(self.conv5(right)))
        return shuffled(torch.cat([left, right], 1), 2)


class ShuffleNetV2(nn.Module):
    """ShuffleNet V2: a stem, three stages, a 1x1 convolution, global average pooling and a linear layer.

    Args:
        widths: the number of channels of each stage, then of the last convolution.
        num_classes: the number of classes.
        in_channels: the number of channels of the images.
    """

    def __init__(self, widths: tuple[int, int, int, int], num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = _pointwise(in_channels, _STEM)
        self.bn1 = nn.BatchNorm2d(_STEM)
        *stages, head = widths
        channels = _STEM
        for index, (depth, width) in enumerate(zip(_DEPTHS, stages, strict=True)):
            units = [SplitUnit(width) for _ in range(depth - 1)]
            self.add_module(f"layer{index + 1}", nn.Sequential(DownUnit(channels, width), *units))
            channels = width
        self.conv2 = _pointwise(channels, head)
        self.bn2 = nn.BatchNorm2d(head)
        self.linear = nn.Linear(head, num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """The logits (B, num_classes) of normalised images (B, in_channels, H, W)."""
        x = F.relu(self.bn1(self.conv1(images)))
        for index in range(len(_DEPTHS)):
            x = getattr(self, f"layer{index + 1}")(x)
        x = F.relu(self.bn2(self.conv2(x)))
        return self.linear(x.mean((2, 3)))


def shufflenet_v1(
    num_classes: int,
    in_channels: int,
    *,
    groups: Literal[1, 2, 3] = 3,
    width: Annotated[float, Gt(0)] = 1.0,
) -> ShuffleNetV1:
    """Build a ShuffleNet. The defaults are the student of Tian et al.

    Args:
        num_classes: the number of classes.
        in_channels: the number of channels of the images.
        groups: the number of groups of the 1x1 convolutions. The first unit of this variant is not divisible by the 4
            and 8 groups of the paper.
        width: the factor that the paper's channels are multiplied by, before they are rounded to fit the groups.
    """
    step = 4 * groups
    first = round(_V1_WIDTHS[groups] * width / step) * step
    # The first unit appends channels to those of the stem, so it needs more than the stem has.
    return ShuffleNetV1(max(first, _STEM + step), groups, num_classes, in_channels)


def shufflenet_v2(num_classes: int, in_channels: int, *, size: Literal["0.5", "1", "1.5", "2"] = "1") -> ShuffleNetV2:
    """Build a ShuffleNet V2. The default is the student of Tian et al.

    Args:
        num_classes: the number of classes.
        in_channels: the number of channels of the images.
        size: the size in the paper, which determines the channels.
    """
    return ShuffleNetV2(_V2_WIDTHS[size], num_classes, in_channels)


SHUFFLENETS: dict[str, Callable[..., nn.Module]] = {"shufflenet_v1": shufflenet_v1, "shufflenet_v2": shufflenet_v2}
