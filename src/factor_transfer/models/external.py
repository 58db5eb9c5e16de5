"""External networks, whose names contain a colon.

``"timm:NAME"``, ``"torchvision:NAME"`` and ``"transformers:NAME"`` are networks of a zoo. ``"package.module:callable"``
is a custom network, built by a callable outside this package. External code is imported only when a network is built.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from factor_transfer.errors import InputError, printable, shown
from factor_transfer.external import call_external, import_external, place_of, working_directory
from factor_transfer.models.optional import state
from factor_transfer.models.outputs import return_logits
from factor_transfer.models.zoos import ZOOS, Statistics

_COMMON_ARGUMENTS = ("name", "num_classes", "in_channels")  # of all networks, in addition to their own


def is_external(name: str) -> bool:
    """Whether a name is that of a zoo's network or of a custom network."""
    return ":" in name


def is_own(name: str) -> bool:
    """Whether a name is that of a custom network, whose code is neither this package's nor a zoo's."""
    return is_external(name) and name.partition(":")[0] not in ZOOS


def check_trusted(
    name: str, trusted_code: Collection[str], place: object, what: str = "a network that external code builds"
) -> None:
    """Refuse to run the code of a custom network or data set that only a file names.

    Args:
        name: the name of the network or data set in the file.
        trusted_code: the names, ``package.module:callable``, of the code that the user's recipe, command line or
            program allows to run.
        place: the file or folder, for the message of an error.
        what: what the code makes, for the message of an error.

    Raises:
        InputError: if the network or data set is custom and not among the trusted ones.
    """
    if is_own(name) and name not in trusted_code:
        raise InputError(
            f"{place} names {what}, {shown(name)}; code that only a file names is not "
            f"run. If you trust this code, add --trust-code {printable(name)} to test, predict, export or package, or "
            "pass trusted_code to load_student; other commands run the code that their recipe names in the same place "
            "(student.model, teacher.model) with the same args"
        )


def check_trusted_data(name: str, trusted_code: Collection[str], place: object) -> None:
    """Refuse to run the code of a data set that only a file names, see ``check_trusted``."""
    check_trusted(name, trusted_code, place, "a data set that external code makes")


def permit(
    models: Sequence[Mapping[str, Any]], trusted_code: Collection[str], place: object, data: str = ""
) -> Sequence[Mapping[str, Any]]:
    """The networks in records, after a check that all of them may be built.

    Args:
        models: the networks, each with its ``name`` and arguments.
        trusted_code: the names of trusted code, see ``check_trusted``.
        place: the file or folder of the records, for the message of an error.
        data: the name of the data set, if it is read, too.

    Returns:
        ``models``, and the data set if external code makes it, to be announced.

    Raises:
        InputError: if a network is built by external code that is not trusted.
    """
    for model in models:
        check_trusted(str(model["name"]), trusted_code, place)
    check_trusted_data(data, trusted_code, place)
    return [*models, {"name": data}] if is_own(data) else models


def announce(models: Iterable[str | Mapping[str, Any]]) -> list[str]:
    """The lines to print before the code of custom networks runs, one per network. No such code is run for them.

    Args:
        models: the networks: names, or mappings with ``name`` and arguments, which the lines show, too. Names and
            arguments may come from a file and are escaped.
    """
    lines = []
    for model in models:
        name = model if isinstance(model, str) else str(model["name"])
        fields = {} if isinstance(model, str) else model
        args = {key: value for key, value in fields.items() if key not in _COMMON_ARGUMENTS}
        if is_own(name):
            with_args = f", with {', '.join(f'{printable(key)} = {shown(value)}' for key, value in args.items())}"
            lines.append(
                f"runs external code: {printable(name)} ({printable(place_of(name))}){with_args if args else ''}"
            )
    return list(dict.fromkeys(lines))


def build_external(name: str, num_classes: int, in_channels: int, pretrained: bool = False, **args: Any) -> nn.Module:
    """Build a network of a zoo or a custom network.

    Args:
        name: ``"timm:NAME"``, ``"torchvision:NAME"``, ``"transformers:NAME"`` (a model type, a name on the hub or a
            folder), or ``"package.module:callable"``. The callable is called with ``num_classes``, ``in_channels`` and
            ``args``. Its module may be in the working directory.
        num_classes: the number of classes.
        in_channels: the number of channels of the images.
        pretrained: whether to load the zoo's weights. The classifier has random weights if its number of classes
            differs from the zoo's.
        args: further arguments of the zoo's builder or of the callable.

    Returns:
        A network, images (B, C, H, W) -> logits (B, K), in training mode, on the default device. Its modules and
        weights have the same names as in their library.

    Raises:
        InputError: if the name or an argument is unknown, if the library is not installed, or if the weights do not
            exist, cannot be fetched or do not fit.
    """
    prefix, _, rest = name.partition(":")
    if prefix in ZOOS:
        return ZOOS[prefix].build(rest, num_classes, in_channels, pretrained, args)
    if pretrained:
        raise InputError(
            f"{name} is not a zoo's network and has no pretrained weights; set weights = FILE to load weights from a "
            "file"
        )
    model = _build_own(name, {"num_classes": num_classes, "in_channels": in_channels} | args)
    model.register_forward_hook(return_logits)
    return model


def zoo_statistics(name: str, model: nn.Module, in_channels: int = 3) -> Statistics | None:
    """The mean and standard deviation by which the zoo normalised images to train a network's pretrained weights.

    Args:
        name: the name of the network, see ``build_model``.
        model: the network of that name.
        in_channels: the number of channels of the images.

    Returns:
        The mean and standard deviation, one value per channel each, for pixels from 0 to 1; ``None`` if they are not
        known (for networks of no zoo and bare model types of transformers) or have another number of channels.
    """
    prefix, _, rest = name.partition(":")
    found = ZOOS[prefix].statistics(rest, model) if is_external(name) and prefix in ZOOS else None
    return found if found is not None and len(found[0]) == len(found[1]) == in_channels else None


def zoo_size(name: str, model: nn.Module) -> int | None:
    """The height and width in pixels of the images that a zoo's network is made for; ``None`` if not known."""
    prefix, _, rest = name.partition(":")
    return ZOOS[prefix].size(rest, model) if is_external(name) and prefix in ZOOS else None


def zoo_classes(name: str, model: nn.Module) -> list[str] | None:
    """The class names that a zoo stores with a network's weights; ``None`` if they are not known."""
    prefix, _, rest = name.partition(":")
    return ZOOS[prefix].classes(rest, model) if is_external(name) and prefix in ZOOS else None


def zoo_preprocessing(name: str, model: nn.Module) -> dict[str, Any]:
    """The preprocessing of a zoo's weights, besides mean and standard deviation; empty if it is not known."""
    prefix, _, rest = name.partition(":")
    return ZOOS[prefix].preprocessing(rest, model) if is_external(name) and prefix in ZOOS else {}


def source(name: str) -> Path | None:
    """The source file of a custom network; ``None`` for a zoo's network or one of ``MODELS``."""
    if not is_own(name):
        return None
    with working_directory():
        file = import_external(name, "model", _zoo_names()).__file__
    return Path(file) if file else None


def zoo_states() -> dict[str, str]:
    """The state of each zoo by name: whether it can be used, or why not. None is imported to find out."""
    return {zoo: state(zoo) for zoo in ZOOS}


def _zoo_names() -> str:
    return ", ".join(f"{zoo}:NAME" for zoo in ZOOS)


def _build_own(name: str, args: dict[str, Any]) -> nn.Module:
    model = call_external(name, "model", args, "num_classes, in_channels and the entries of args", _zoo_names())
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model {name!r} returns an object of type {type(model).__name__}; a torch.nn.Module is needed"
        )
    return model
