"""The cost of a network at inference."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from factor_transfer.errors import InputError
from factor_transfer.models.inference import eval_mode


def parameters(model: nn.Module) -> int:
    """The number of a network's parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def state_bytes(model: nn.Module) -> int:
    """The size of a network's parameters and buffers, in bytes."""
    return sum(value.nbytes for value in model.state_dict().values())


def macs(model: nn.Module, images: Tensor) -> int:
    """The number of multiply-accumulate operations of a forward pass for one image.

    Convolutions and matrix products are counted, those of attention among them. Other operations (normalisation,
    activations, pooling) are negligible. Recurrent layers, such as ``nn.LSTM``, are not counted.

    Args:
        model: the network.
        images: a batch of the network's input (B, ...), of which the first image is used.

    Raises:
        InputError: if the batch is empty.
    """
    if not len(images):
        raise InputError("the operations of a network are counted with an image, but the batch is empty")
    # Attention would use fused kernels, of which PyTorch's counter does not know those of evaluation mode and of CPUs.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with eval_mode(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(images[:1])
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops() // 2  # PyTorch counts a multiplication and an addition as two operations


def layer_macs(model: nn.Module, images: Tensor) -> int:
    """The number of multiply-accumulate operations of the convolutions and linear layers for one image.

    In the package's own networks, there are no others. ``macs`` counts those of any network, but PyTorch's counter
    imports the compiler, which takes a second.

    Args:
        model: the network.
        images: a batch of the network's input (B, ...), of which the first image is used.
    """
    counts = []

    def count(layer: nn.Module, args: Any, output: Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        counts.append(output.numel() * weight[0].numel())  # each value is the product of some inputs and a filter

    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    with eval_mode(model):
        model(images[:1])
    for handle in handles:
        handle.remove()
    return sum(counts)


# What fills weights with random numbers. Other functions of ``torch.nn.init`` call the first two.
_DRAWING = torch.Tensor.normal_, torch.Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_


class NotInitialized(TorchFunctionMode):
    """A context in which new layers have arbitrary weights, since drawing them takes longer than all the rest."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Leave tensors as they are that random numbers would fill."""
        if func in _DRAWING:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))
