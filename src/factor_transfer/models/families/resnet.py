"""Residual networks (He, Zhang, Ren, Sun: Deep Residual Learning, CVPR 2016).

One class implements both families of the paper: the three-stage networks for CIFAR of depth 6n + 2, and the four-stage
networks for ImageNet. The modules have their usual names (``conv1``, ``layer1`` …, ``fc``), so that published weights
fit. ``layer1`` … return the outputs of the stages after their last ReLU.
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal, TypeVar

from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

from factor_transfer.models.memory_format import MIN_CHANNELS

Layer = TypeVar("Layer", bound=nn.Conv2d)


class Projection(nn.Conv2d):
    """A strided 1x1 convolution that subsamples its input first and then convolves without a stride.

    The output is the same. oneDNN (3.12, in torch 2.13) writes beyond a buffer in the backward pass of a strided 1x1
    convolution with few channels (see ``memory_format``), but not without a stride.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H / stride, W / stride)."""
        return F.conv2d(x[:, :, :: self.stride[0], :: self.stride[1]], self.weight, self.bias)

    @classmethod
    def like(cls, layer: nn.Conv2d) -> "Projection":
        """A projection that shares the weights of a strided 1x1 convolution."""
        return cls._of(cls, layer)

    def plain(self) -> nn.Conv2d:
        """A plain ``Conv2d`` that shares the weights, for use without gradients."""
        return self._of(nn.Conv2d, self)

    @staticmethod
    def _of(kind: "type[Layer]", layer: nn.Conv2d) -> "Layer":
        converted = kind(layer.in_channels, layer.out_channels, 1, layer.stride[0], bias=layer.bias is not None)
        converted.weight, converted.bias = layer.weight, layer.bias
        return converted.train(layer.training)


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Conv2d:
    """A 1x1 convolution without bias: (B, in, H, W) -> (B, out, H / stride, W / stride)."""
    layer = Projection if in_channels < MIN_CHANNELS else nn.Conv2d
    return layer(in_channels, out_channels, 1, stride, bias=False)


def initialize(model: nn.Module) -> None:
    """Initialise a network's convolutions for ReLU networks by the fan-out (He et al. 2015), in place."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    """A projection with batch norm if the shape changes; ``None`` otherwise."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(projection(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """A residual block of two 3x3 convolutions."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _shortcut(in_channels, channels, stride)
        self.relu = nn.ReLU()  # a module, so that its input can be tapped

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, channels, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """A residual block of 1x1, 3x3 and 1x1 convolutions. The 3x3 convolution has the stride, as in torchvision."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = _shortcut(in_channels, out_channels, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, 4 * channels, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """ResNet: a stem, stages of residual blocks, global average pooling and a linear layer.

    Args:
        block: the class of the blocks.
        depths: the number of blocks of each stage. Every stage but the first halves height and width.
        widths: the number of channels of the stem, then of each stage before the block's expansion.
        num_classes: the number of classes.
        in_channels: the number of channels of the images.
        stem: the stem. ``"cifar"``, a 3x3 convolution, keeps the resolution. ``"imagenet"``, a 7x7 convolution with
            stride 2 and max pooling, divides it by 4.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        widths: Sequence[int],
        num_classes: int,
        in_channels: int = 3,
        stem: Literal["cifar", "imagenet"] = "cifar",
    ) -> None:
        super().__init__()
        kernel, stride, padding = (7, 2, 3) if stem == "imagenet" else (3, 1, 1)
        channels = widths[0]
        self.conv1 = nn.Conv2d(in_channels, channels, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else None
        self.stages = len(depths)
        for index, (depth, width) in enumerate(zip(depths, widths[1:], strict=True)):
            blocks = []
            for position in range(depth):
                blocks.append(block(channels, width, 2 if index and not position else 1))
                channels = width * block.expansion
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """The logits (B, num_classes) of normalised images (B, in_channels, H, W)."""
        x = F.relu(self.bn1(self.conv1(images)))
        if self.maxpool is not None:
            x = self.maxpool(x)
        for index in range(self.stages):
            x = getattr(self, f"layer{index + 1}")(x)
        return self.fc(x.mean((2, 3)))


def cifar_resnet(depth: int, num_classes: int, in_channels: int, *, width: Annotated[int, Ge(1)] = 16) -> ResNet:
    """Build a ResNet for CIFAR: three stages of (depth - 2) / 6 basic blocks.

    Shortcuts are projections where the shape changes.

    Args:
        depth: the number of layers, 6n + 2.
        num_classes: the number of classes.
        in_channels: the number of channels of the images.
        width: the number of channels of the first stage. The others have twice and four times as many.
    """
    return ResNet(BasicBlock, [(depth - 2) // 6] * 3, [width, width, 2 * width, 4 * width], num_classes, in_channels)


def cifar_resnet_x4(depth: int, num_classes: int, in_channels: int, *, width: Annotated[int, Ge(2)] = 64) -> ResNet:
    """Build a ResNet for CIFAR with stages four times and a stem twice as wide (Tian et al., CRD, ICLR 2020).

    Args:
        depth: the number of layers, 6n + 2.
        num_classes: the number of classes.
        in_channels: the number of channels of the images.
        width: the number of channels of the first stage. The stem has half as many, the other stages twice and four
            times as many.
    """
    widths = [width // 2, width, 2 * width, 4 * width]
    return ResNet(BasicBlock, [(depth - 2) // 6] * 3, widths, num_classes, in_channels)


def imagenet_resnet(
    block: type[BasicBlock] | type[Bottleneck],
    depths: Sequence[int],
    num_classes: int,
    in_channels: int,
    *,
    stem: Literal["cifar", "imagenet"] = "imagenet",
    width: Annotated[int, Ge(1)] = 64,
) -> ResNet:
    """Build a ResNet with four stages.

    Args:
        block: the class of the blocks.
        depths: the number of blocks of each stage.
        num_classes: the number of classes.
        in_channels: the number of channels of the images.
        stem: the stem, ``"imagenet"`` for large images or ``"cifar"`` for small ones (see ``ResNet``).
        width: the number of channels of the first stage. Each later stage has twice as many as the one before it.
    """
    widths = [width, width, 2 * width, 4 * width, 8 * width]
    return ResNet(block, depths, widths, num_classes, in_channels, stem)


RESNETS = {
    **{f"resnet{depth}": partial(cifar_resnet, depth) for depth in (8, 14, 20, 26, 32, 44, 56, 110)},
    "resnet8x4": partial(cifar_resnet_x4, 8),
    "resnet32x4": partial(cifar_resnet_x4, 32),
    "resnet18": partial(imagenet_resnet, BasicBlock, [2, 2, 2, 2]),
    "resnet34": partial(imagenet_resnet, BasicBlock, [3, 4, 6, 3]),
    "resnet50": partial(imagenet_resnet, Bottleneck, [3, 4, 6, 3]),
}
