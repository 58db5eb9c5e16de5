"""Networks from elsewhere, by a name with a colon.

``"timm:NAME"``, ``"torchvision:NAME"`` and ``"transformers:NAME"`` are a zoo's; ``"package.module:callable"`` is
somebody's own. Nothing of theirs is imported before such a name is used.
"""

import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from factor_transfer.errors import InputError, printable, shown, suggest
from factor_transfer.models.optional import state
from factor_transfer.models.outputs import return_logits
from factor_transfer.models.zoos import ZOOS, Statistics

_BUILT_WITH = ("name", "num_classes", "in_channels")  # beside a network's own arguments


def is_external(name: str) -> bool:
    """Whether a model's name is one of a zoo's or of somebody's own callable."""
    return ":" in name


def is_own(name: str) -> bool:
    """Whether it is one of somebody's own callable: code that is neither this package's nor a zoo's."""
    return is_external(name) and name.partition(":")[0] not in ZOOS


def check_trusted(name: str, trusted_code: Collection[str], place: object) -> None:
    """Refuse to run somebody's own code for no other reason than that a file names it.

    Args:
        name: of the network, as the file has it.
        trusted_code: names, ``package.module:callable``, that the person's recipe, command line or program gives.
        place: of the file, for the message.

    Raises:
        InputError: the network is somebody's own, and not among them.
    """
    if is_own(name) and name not in trusted_code:
        raise InputError(
            f"{place} is of a network that code from outside makes, {shown(name)}, and a file alone says so, which is "
            f"no reason to run it. If you trust that code: predict, export and package take --trust-code "
            f"{printable(name)}, load_student takes trusted_code; other commands run what their recipe names in the "
            "same place (student.model, teacher.model) with the same args"
        )


def permit(
    models: Sequence[Mapping[str, Any]], trusted_code: Collection[str], place: object
) -> Sequence[Mapping[str, Any]]:
    """The networks that records name, if all of them may be built.

    Args:
        models: what records say of networks: ``name`` and arguments.
        trusted_code: see ``check_trusted``.
        place: likewise.

    Returns:
        The same, to be announced.

    Raises:
        InputError: one is made by code from outside that may not be run.
    """
    for model in models:
        check_trusted(str(model["name"]), trusted_code, place)
    return models


def announce(models: Iterable[str | Mapping[str, Any]]) -> list[str]:
    """What to say before somebody's own code runs: a line for each network that it makes. Nothing is run for it.

    Args:
        models: names; or what a record says of networks, ``name`` and arguments, which are shown, too. They may come
            from a file, and are escaped.
    """
    lines = []
    for model in models:
        name = model if isinstance(model, str) else str(model["name"])
        args = {} if isinstance(model, str) else {key: value for key, value in model.items() if key not in _BUILT_WITH}
        if is_own(name):
            given = f", with {', '.join(f'{printable(key)} = {shown(value)}' for key, value in args.items())}"
            lines.append(
                f"runs code from outside: {printable(name)} ({printable(_place(name))}){given if args else ''}"
            )
    return list(dict.fromkeys(lines))


def build_external(name: str, num_classes: int, in_channels: int, pretrained: bool = False, **args: Any) -> nn.Module:
    """Build a network of a zoo, or with somebody's own callable.

    Args:
        name: ``"timm:NAME"``, ``"torchvision:NAME"``, ``"transformers:NAME"`` (a model type, a name on the hub or a
            folder), or ``"package.module:callable"``. The callable is called with ``num_classes``, ``in_channels`` and
            ``args``; its module may lie in the working directory.
        num_classes: outputs.
        in_channels: of the images.
        pretrained: with the zoo's weights. The classifier's are random where the zoo's has another number of classes.
        args: what the zoo, or the callable, takes besides.

    Returns:
        A network whose forward takes images (B, C, H, W) and returns logits (B, K), in training mode, on the default
        device. Its modules and weights have the names that they have where it comes from.

    Raises:
        InputError: an unknown name or argument, a library that is not there, weights that do not exist, cannot be
            fetched or do not fit.
    """
    prefix, _, rest = name.partition(":")
    if prefix in ZOOS:
        return ZOOS[prefix].build(rest, num_classes, in_channels, pretrained, args)
    if pretrained:
        raise InputError(
            f"{name} is no zoo's network and has no zoo's weights; give a file of them, with weights = FILE"
        )
    model = _build_own(name, {"num_classes": num_classes, "in_channels": in_channels} | args)
    model.register_forward_hook(return_logits)
    return model


def zoo_statistics(name: str, model: nn.Module, in_channels: int = 3) -> Statistics | None:
    """Mean and standard deviation of the images that a zoo's own weights of a network were trained with.

    Args:
        name: as for ``build_external``, or one of ``MODELS``.
        model: the network of that name.
        in_channels: of the images.

    Returns:
        A value a channel each, 0..1; ``None`` if they are not known (what is no zoo's, a bare model type of
        transformers), or are of another number of channels.
    """
    prefix, _, rest = name.partition(":")
    found = ZOOS[prefix].statistics(rest, model) if is_external(name) and prefix in ZOOS else None
    return found if found is not None and len(found[0]) == len(found[1]) == in_channels else None


def zoo_size(name: str, model: nn.Module) -> int | None:
    """Height and width, in pixels, of the images that a network of a zoo is made for; ``None`` if it is not known."""
    prefix, _, rest = name.partition(":")
    return ZOOS[prefix].size(rest, model) if is_external(name) and prefix in ZOOS else None


def zoo_classes(name: str, model: nn.Module) -> list[str] | None:
    """The names of a network's outputs that a zoo stores with its weights; ``None`` if they are not known."""
    prefix, _, rest = name.partition(":")
    return ZOOS[prefix].classes(rest, model) if is_external(name) and prefix in ZOOS else None


def zoo_preprocessing(name: str, model: nn.Module) -> dict[str, Any]:
    """What a zoo's weights were trained with, beside mean and standard deviation; empty if it is not known."""
    prefix, _, rest = name.partition(":")
    return ZOOS[prefix].preprocessing(rest, model) if is_external(name) and prefix in ZOOS else {}


def source(name: str) -> Path | None:
    """The file of somebody's own network; ``None`` for a zoo's, or one of ``MODELS``."""
    if not is_own(name):
        return None
    with _working_directory():
        file = _import(name).__file__
    return Path(file) if file else None


def zoo_states() -> dict[str, str]:
    """The zoos, and whether each can be used here, in words; those that are installed are imported to find out."""
    return {zoo: state(zoo) for zoo in ZOOS}


def _import(name: str) -> ModuleType:
    """The module of somebody's own callable."""
    path, _, attribute = name.partition(":")
    zoos = ", ".join(f"{zoo}:NAME" for zoo in ZOOS)
    if not all(part.isidentifier() for part in [*path.split("."), attribute]):
        raise InputError(f"model {name!r} is none; with a colon it is package.module:callable, or {zoos}")
    try:
        return import_module(path)
    except ImportError as error:
        raise InputError(
            f"model {name!r}: module {path!r} cannot be imported ({error}); it must be installed, or lie in "
            f"{Path.cwd()}{'' if '.' in path else f'; networks of a zoo are {zoos}'}"
        ) from error


def _place(name: str) -> str:
    """Where the module of somebody's own callable lies. To ask importlib would run the packages that it is in."""
    places: list[str | None] = []
    steps = name.partition(":")[0].split(".")
    path: Any = None
    with _working_directory():
        for count in range(1, len(steps) + 1):
            module = ".".join(steps[:count])
            found = (finder.find_spec(module, path) for finder in sys.meta_path if steps[count - 1].isidentifier())
            spec = next((spec for spec in found if spec is not None), None)
            if spec is None:
                return "not found"
            path = spec.submodule_search_locations
            places = [spec.origin, *(path or ())]
    return next((place for place in places if place), "no file")


def _build_own(name: str, args: dict[str, Any]) -> nn.Module:
    path, _, attribute = name.partition(":")
    given = ", ".join(f"{key} = {value!r}" for key, value in args.items())
    with _working_directory():
        module = _import(name)
        builder = getattr(module, attribute, None)
        if builder is None:
            names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
            raise InputError(f"model {name!r}: module {path!r} has no {attribute!r}{suggest(attribute, names)}")
        if not callable(builder):
            raise InputError(f"model {name!r} is a {type(builder).__name__}; a function or class is needed")
        try:
            model = builder(**args)
        except TypeError as error:
            raise InputError(
                f"model {name!r}: called with {given}, it raises TypeError: {error}. It must take num_classes and "
                "in_channels, and what args says; --debug shows where"
            ) from error
    if not isinstance(model, nn.Module):
        raise InputError(f"model {name!r} returns a {type(model).__name__}; a torch.nn.Module is needed")
    return model


@contextmanager
def _working_directory() -> Iterator[None]:
    """Modules in the working directory can be imported, as with ``python -m``, and when a builder imports more."""
    here = str(Path.cwd())
    absent = here not in sys.path
    if absent:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        if absent and here in sys.path:
            sys.path.remove(here)
