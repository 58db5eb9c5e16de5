"""Networks, by name."""

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError
from torch import nn

from factor_transfer.errors import InputError, choose
from factor_transfer.models.cost import macs, parameters
from factor_transfer.models.external import (
    announce,
    build_external,
    check_trusted,
    is_external,
    is_own,
    permit,
    zoo_statistics,
)
from factor_transfer.models.families.mobilenet import MOBILENETS
from factor_transfer.models.families.resnet import RESNETS
from factor_transfer.models.families.shufflenet import SHUFFLENETS
from factor_transfer.models.families.vgg import VGGS
from factor_transfer.models.families.wide_resnet import WIDE_RESNETS
from factor_transfer.models.normalize import Normalize
from factor_transfer.settings import options, settings

__all__ = [
    "MODELS",
    "Normalize",
    "announce",
    "build_model",
    "check_trusted",
    "is_external",
    "is_own",
    "macs",
    "parameters",
    "permit",
    "zoo_statistics",
]

# A model is a function of (num_classes, in_channels); its other arguments are what a recipe may say of it.
MODELS: dict[str, Callable[..., nn.Module]] = {
    **RESNETS,
    **WIDE_RESNETS,
    **VGGS,
    **MOBILENETS,
    **SHUFFLENETS,
}


def build_model(
    name: str, num_classes: int, in_channels: int = 3, *, pretrained: bool = False, **args: Any
) -> nn.Module:
    """Build a network, with random weights unless ``pretrained``.

    Example:
        >>> from factor_transfer import build_model
        >>> student = build_model("resnet8", num_classes=10, width=8)
        >>> student.fc
        Linear(in_features=32, out_features=10, bias=True)

    Args:
        name: one of ``MODELS``, or, with a colon, a network from elsewhere (``external.build_external``).
        num_classes: outputs.
        in_channels: of the images.
        pretrained: with the weights of the zoo that it comes from.
        args: the model's own keyword arguments, such as ``width`` or ``stem``.

    Raises:
        InputError: unknown name or argument, weights that do not exist or cannot be had.
    """
    if num_classes < 1 or in_channels < 1:
        raise InputError(f"{name} needs at least one class and one channel, got {num_classes} and {in_channels}")
    if is_external(name):
        return build_external(name, num_classes, in_channels, pretrained, **args)
    builder = MODELS[choose("model", name, MODELS)]
    for arg in args:
        choose(f"argument of {name}", arg, settings(builder))
    if pretrained:
        raise InputError(
            f"{name} is this package's own and has no zoo's weights; give a file of them, with weights = FILE"
        )
    try:
        options(name, builder).model_validate(args)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise InputError(f"{name} cannot be built with {args}: {faults}") from None
    return builder(num_classes=num_classes, in_channels=in_channels, **args)
