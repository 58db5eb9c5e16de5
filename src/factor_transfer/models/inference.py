"""Running networks without training them, and copying them."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

M = TypeVar("M", bound=nn.Module)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """A context with a network in evaluation mode and without gradients. At the end, modules regain their modes."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def copy_network(model: M) -> M:
    """A deep copy of a network.

    Pruned layers and layers with weight norm or spectral norm compute their weight before each pass and store it, with
    its graph, in an attribute. PyTorch cannot copy such a tensor, so it is detached first. The next pass computes it
    again.
    """
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and not value.is_leaf:
                vars(module)[name] = value.detach()
    return copy.deepcopy(model)


def fix_computed_weights(model: nn.Module) -> None:
    """Replace weights that are computed before each pass by plain parameters with the same values, in place.

    These are the weights of pruned layers, weight norm, spectral norm and parametrizations. An exported network then
    does not compute them again for each image.

    Args:
        model: the network, in evaluation mode.
    """
    for module in list(model.modules()):
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)
            elif isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
        if parametrize.is_parametrized(module):
            # A copied module shares its class with the original, and the parametrization is removed from the class.
            cls = type(module)
            module.__class__ = type(cls.__name__, cls.__bases__, dict(cls.__dict__))
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name)
