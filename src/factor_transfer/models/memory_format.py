"""How a network's images and weights lie in memory."""

import torch
from torch import nn

# Strided 1x1 convolutions of fewer channels are not safe in channels last, see ``memory_format``.
LEAST_CHANNELS = 16


def memory_format(model: nn.Module) -> torch.memory_format:
    """Channels last, in which convolutions and batch norms are fastest; channels first where that is not safe.

    oneDNN (3.12, in torch 2.13) writes past a buffer in the gradient of a strided 1x1 convolution of few channels where
    channels come last: on AVX2 processors with fewer than eight, on AVX-512 processors with fewer than sixteen, if the
    number of images is odd and there are two threads.
    """
    for module in model.modules():
        if (
            isinstance(module, nn.Conv2d)
            and type(module).forward is nn.Conv2d.forward
            and module.in_channels // module.groups < LEAST_CHANNELS
            and module.kernel_size == (1, 1)
            and module.stride != (1, 1)
        ):
            return torch.contiguous_format
    return torch.channels_last


def to_memory_format(model: nn.Module) -> nn.Module:
    """Put a network's weights into its ``memory_format``, in place; what it computes stays the same."""
    return model.to(memory_format=memory_format(model))  # type: ignore[call-overload]
