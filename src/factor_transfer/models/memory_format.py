"""The memory format of a network's images and weights."""

import torch
from torch import nn

# Strided 1x1 convolutions with fewer input channels are not safe in the channels-last format, see ``memory_format``.
MIN_CHANNELS = 16


def memory_format(model: nn.Module) -> torch.memory_format:
    """The memory format of a network: channels last, which is fastest, or contiguous where channels last is not safe.

    In the channels-last format, oneDNN (3.12, in torch 2.13) writes beyond a buffer in the backward pass of a strided
    1x1 convolution with few channels: fewer than 8 on AVX2 processors and fewer than 16 on AVX-512 processors, if the
    number of images is odd and there are two threads.
    """
    for module in model.modules():
        if (
            isinstance(module, nn.Conv2d)
            and type(module).forward is nn.Conv2d.forward
            and module.in_channels // module.groups < MIN_CHANNELS
            and module.kernel_size == (1, 1)
            and module.stride != (1, 1)
        ):
            return torch.contiguous_format
    return torch.channels_last


def to_memory_format(model: nn.Module) -> nn.Module:
    """Convert a network's weights to its ``memory_format``, in place. Their values stay the same."""
    return model.to(memory_format=memory_format(model))  # type: ignore[call-overload]
