"""The cost of a network at inference."""

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from factor_transfer.models.inference import eval_mode


def parameters(model: nn.Module) -> int:
    """The number of a network's parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def state_bytes(model: nn.Module) -> int:
    """The size of a network's parameters and buffers, in bytes."""
    return sum(value.nbytes for value in model.state_dict().values())


def macs(model: nn.Module, images: Tensor) -> int:
    """The number of multiply-accumulate operations of a forward pass for one image.

    Convolutions and matrix products are counted. Other operations (normalisation, activations, pooling) are negligible.

    Args:
        model: the network.
        images: a batch of the network's input (B, ...), of which the first image is used.
    """
    with eval_mode(model), FlopCounterMode(display=False) as counter:
        model(images[:1])
    return counter.get_total_flops() // 2  # PyTorch counts a multiplication and an addition as two operations
