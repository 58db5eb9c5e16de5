"""Running a network without training it, and copying it."""

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
    """Evaluation mode and no gradient; afterwards each module is in the mode it was in."""
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

    Some layers compute their weight before each pass and leave it in an attribute, with its gradient's graph: pruned
    ones, and those with weight norm or spectral norm. PyTorch does not copy such a tensor, so it is cut off from its
    graph first; the next pass computes it anew.
    """
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and not value.is_leaf:
                vars(module)[name] = value.detach()
    return copy.deepcopy(model)


def fix_computed_weights(model: nn.Module) -> None:
    """Replace weights that are computed before each pass by plain parameters with their values, in place.

    It does so for pruned layers, weight norm, spectral norm and parametrizations, so that what is exported does not
    compute them again for each image.

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
            # A copy has the class of the original, from which the parametrization is removed, too.
            own = type(module)
            module.__class__ = type(own.__name__, own.__bases__, dict(own.__dict__))
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name)
