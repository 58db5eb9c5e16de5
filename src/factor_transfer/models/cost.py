"""What a network costs where it runs."""

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from factor_transfer.models.inference import eval_mode


def parameters(model: nn.Module) -> int:
    """The number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model: nn.Module, images: Tensor) -> int:
    """Multiply-accumulates of one forward pass for one image.

    Convolutions and matrix products are counted; the rest (normalisation, activations, pooling) is small.

    Args:
        model: the network.
        images: any batch of its input (B, ...).
    """
    with eval_mode(model), FlopCounterMode(display=False) as counter:
        model(images[:1])
    return counter.get_total_flops() // 2  # PyTorch counts a multiply and an add as two
