"""The networks that can be built by name."""

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError
from torch import nn

from factor_transfer.errors import InputError, choose
from factor_transfer.models.cost import macs, parameters, state_bytes
from factor_transfer.models.external import (
    announce,
    build_external,
    check_trusted,
    check_trusted_data,
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
    "check_trusted_data",
    "is_external",
    "is_own",
    "macs",
    "parameters",
    "permit",
    "state_bytes",
    "zoo_statistics",
]

# Builders of the package's own networks, called with (num_classes, in_channels). Their keyword-only arguments are the
# settings that a recipe accepts.
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
    """Build a network by its name, with random weights unless ``pretrained`` is set.

    Example:
        >>> from factor_transfer import build_model
        >>> student = build_model("resnet8", num_classes=10, width=8)
        >>> student.fc
        Linear(in_features=32, out_features=10, bias=True)

    Args:
        name: the name of one of the package's own networks (``factor-transfer show models``); or, with a colon, of a
            network from a zoo or a custom callable, such as ``"timm:resnet18"`` or ``"package.module:callable"``.
        num_classes: the number of classes.
        in_channels: the number of channels of the images.
        pretrained: whether to load the zoo's weights. The package's own networks have none.
        args: the network's keyword arguments, such as ``width`` or ``stem``.

    Returns:
        The network, images (B, in_channels, H, W) -> logits (B, num_classes).

    Raises:
        InputError: if the name or an argument is unknown, or if the weights do not exist or cannot be fetched.
    """
    if num_classes < 1 or in_channels < 1:
        raise InputError(
            f"{name} needs at least one class and one channel, but got {num_classes} classes and {in_channels} channels"
        )
    if is_external(name):
        return build_external(name, num_classes, in_channels, pretrained, **args)
    builder = MODELS[choose("model", name, MODELS)]
    for arg in args:
        choose(f"argument of {name}", arg, settings(builder))
    if pretrained:
        raise InputError(
            f"{name} is one of this package's networks, which have no pretrained weights; set weights = FILE to load "
            "weights from a file"
        )
    try:
        options(name, builder).model_validate(args)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise InputError(f"{name} cannot be built with {args}: {faults}") from None
    return builder(num_classes=num_classes, in_channels=in_channels, **args)
