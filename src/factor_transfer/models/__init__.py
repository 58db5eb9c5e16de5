"""Networks, by name."""

from collections.abc import Callable
from typing import Any

from torch import nn

from factor_transfer.errors import InputError, choose
from factor_transfer.models.cost import macs, parameters
from factor_transfer.models.mobilenet import MOBILENETS
from factor_transfer.models.normalize import Normalize
from factor_transfer.models.resnet import RESNETS
from factor_transfer.models.shufflenet import SHUFFLENETS
from factor_transfer.models.vgg import VGGS
from factor_transfer.models.wide_resnet import WIDE_RESNETS
from factor_transfer.options import settings

__all__ = ["MODELS", "Normalize", "build_model", "macs", "parameters"]

# A model is a function of (num_classes, in_channels); its other arguments are what a recipe may say of it.
MODELS: dict[str, Callable[..., nn.Module]] = {
    **RESNETS,
    **WIDE_RESNETS,
    **VGGS,
    **MOBILENETS,
    **SHUFFLENETS,
}


def zoo_statistics(name, model):
    return None


def build_model(name: str, num_classes: int, in_channels: int = 3, pretrained=False, **args: Any) -> nn.Module:
    """Build a network with random weights.

    Args:
        name: one of ``MODELS``.
        num_classes: outputs.
        in_channels: of the images.
        args: the model's own keyword arguments, such as ``width`` or ``stem``.

    Raises:
        InputError: unknown name or argument.
    """
    builder = MODELS[choose("model", name, MODELS)]
    for arg in args:
        choose(f"argument of {name}", arg, settings(builder))
    if num_classes < 1 or in_channels < 1:
        raise InputError(f"{name} needs at least one class and one channel, got {num_classes} and {in_channels}")
    return builder(num_classes=num_classes, in_channels=in_channels, **args)
