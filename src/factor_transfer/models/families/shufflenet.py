"""ShuffleNets, for small images.

Version 1 is of Zhang, Zhou, Lin, Sun: ShuffleNet, CVPR 2018; version 2 of Ma, Zhang, Zheng, Sun: ShuffleNet V2, ECCV
2018. Both in the form for CIFAR of Tian et al. (Contrastive Representation Distillation, ICLR 2020): the stem is one
1x1 convolution that keeps the resolution. ``layer1`` … ``layer3`` return the stages' outputs after their activation.
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
# Channels of the first stage by the number of groups; the paper's table 1.
_V1_WIDTHS = {1: 144, 2: 200, 3: 240}
# Channels of the stages, then of the last convolution, by size; the paper's table 5.
_V2_WIDTHS = {
    "0.5": (48, 96, 192, 1024),
    "1": (116, 232, 464, 1024),
    "1.5": (176, 352, 704, 1024),
    "2": (244, 488, 976, 2048),
}


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Channels in the order of their place in their group, so that the next groups have some of each: (B, C, H, W)."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def _pointwise(in_channels: int, channels: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 1, groups=groups, bias=False)


def _depthwise(channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)


class GroupedUnit(nn.Module):
    """Version 1: grouped 1x1, depthwise 3x3 and grouped 1x1 convolutions, and a shortcut.

    Where the unit halves height and width, the shortcut is average pooling, and its channels are set behind the
    others instead of being added.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int) -> None:
        super().__init__()
        channels = out_channels - in_channels if stride == 2 else out_channels
        # A quarter of the unit's own channels, those of the shortcut not counted, as Tian et al. have it.
        inside = channels // 4
        self.groups = 1 if in_channels == _STEM else groups  # the stem has too few channels to be grouped
        self.conv1 = _pointwise(in_channels, inside, self.groups)
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv2 = _depthwise(inside, stride)
        self.bn2 = nn.BatchNorm2d(inside)
        self.conv3 = _pointwise(inside, channels, groups)
        self.bn3 = nn.BatchNorm2d(channels)
        self.shortcut = nn.AvgPool2d(3, 2, 1) if stride == 2 else None
        self.relu = nn.ReLU()  # a module, so that what it is given can be tapped

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H / stride, W / stride)."""
        out = shuffled(F.relu(self.bn1(self.conv1(x))), self.groups)
        # The paper has no ReLU behind the depthwise convolution; Tian et al. do.
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + x if self.shortcut is None else torch.cat([out, self.shortcut(x)], 1))


class ShuffleNetV1(nn.Module):
    """Stem, three stages, global average pooling, one linear layer.

    Args:
        width: channels of the first stage; the others have twice and four times as many.
        groups: of the 1x1 convolutions; ``width`` is a multiple of four times as many.
        num_classes: outputs.
        in_channels: of the images.
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
        """(B, in_channels, H, W), normalised -> logits (B, num_classes)."""
        x = F.relu(self.bn1(self.conv1(images)))
        for index in range(len(_DEPTHS)):
            x = getattr(self, f"layer{index + 1}")(x)
        return self.linear(x.mean((2, 3)))


class SplitUnit(nn.Module):
    """Version 2: half of the channels pass, the other half go through 1x1, depthwise 3x3 and 1x1 convolutions."""

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
        """(B, C, H, W) -> the same shape."""
        passed, out = x.chunk(2, 1)
        out = F.relu(self.bn1(self.conv1(out)))
        out = self.bn2(self.conv2(out))
        out = F.relu(self.bn3(self.conv3(out)))
        return shuffled(torch.cat([passed, out], 1), 2)


class DownUnit(nn.Module):
    """Version 2, where height and width are halved: all channels go through both branches."""

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
        """(B, in, H, W) -> (B, out, H / 2, W / 2)."""
        left = self.bn1(self.conv1(x))
        left = F.relu(self.bn2(self.conv2(left)))
        right = F.relu(self.bn3(self.conv3(x)))
        right = self.bn4(self.conv4(right))
        right = F.relu(self.bn5(self.conv5(right)))
        return shuffled(torch.cat([left, right], 1), 2)


class ShuffleNetV2(nn.Module):
    """Stem, three stages, a 1x1 convolution, global average pooling, one linear layer.

    Args:
        widths: channels of each stage, then of the last convolution.
        num_classes: outputs.
        in_channels: of the images.
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
        """(B, in_channels, H, W), normalised -> logits (B, num_classes)."""
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
    """ShuffleNet; by default the student of Tian et al.

    Args:
        num_classes: outputs.
        in_channels: of the images.
        groups: of the 1x1 convolutions. The paper's 4 and 8 do not divide the first unit in this form.
        width: by which the paper's channels are multiplied, before they are made to fit the groups.
    """
    step = 4 * groups
    first = round(_V1_WIDTHS[groups] * width / step) * step
    # The first unit adds channels to the stem's.
    return ShuffleNetV1(max(first, _STEM + step), groups, num_classes, in_channels)


def shufflenet_v2(num_classes: int, in_channels: int, *, size: Literal["0.5", "1", "1.5", "2"] = "1") -> ShuffleNetV2:
    """ShuffleNet V2; by default the student of Tian et al.

    Args:
        num_classes: outputs.
        in_channels: of the images.
        size: the complexity's name in the paper, which chooses the channels.
    """
    return ShuffleNetV2(_V2_WIDTHS[size], num_classes, in_channels)


SHUFFLENETS: dict[str, Callable[..., nn.Module]] = {"shufflenet_v1": shufflenet_v1, "shufflenet_v2": shufflenet_v2}
