"""External code: callables that a recipe names as ``package.module:callable``, and libraries that may be missing."""

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from factor_transfer.errors import InputError, suggest


def import_external(name: str, kind: str, others: str = "") -> ModuleType:
    """Import the module of a callable. To be called within ``working_directory``.

    Args:
        name: the name of the callable.
        kind: the kind of thing that it makes, for messages, such as ``"model"``.
        others: other names with a colon that are valid, for messages.

    Raises:
        InputError: if the name is not valid, or the module cannot be imported.
    """
    path, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in [*path.split("."), attribute]):
        alternatives = f", or one of {others}" if others else ""
        raise InputError(
            f"{name!r} is not a valid {kind} name; a name with a colon is package.module:callable{alternatives}"
        )
    try:
        return import_module(path)
    except ImportError as error:
        alternatives = f"; the names of zoo networks are {others}" if others and "." not in path else ""
        raise InputError(
            f"{kind} {name!r}: module {path!r} cannot be imported ({error}); it must be installed or be in "
            f"{Path.cwd()}{alternatives}"
        ) from error


def call_external(name: str, kind: str, args: dict[str, Any], accepts: str, others: str = "") -> Any:
    """Import a callable, and call it.

    Args:
        name: the name of the callable.
        kind: the kind of thing that it makes, for messages.
        args: the keyword arguments.
        accepts: the arguments that it must accept, for messages.
        others: other names with a colon that are valid, for messages.

    Raises:
        InputError: if it cannot be imported, is not callable, or raises a TypeError.
    """
    path, _, attribute = name.partition(":")
    with working_directory():
        module = import_external(name, kind, others)
        made: Callable[..., Any] | None = getattr(module, attribute, None)
        if made is None:
            names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
            raise InputError(f"{kind} {name!r}: module {path!r} has no {attribute!r}{suggest(attribute, names)}")
        if not callable(made):
            raise InputError(f"{kind} {name!r} is of type {type(made).__name__}; a function or class is needed")
        try:
            return made(**args)
        except TypeError as error:
            call = ", ".join(f"{key} = {value!r}" for key, value in args.items()) or "no arguments"
            raise InputError(
                f"{kind} {name!r} raises a TypeError when called with {call}: {error}. It must accept {accepts}; "
                "--debug shows the traceback"
            ) from error


def place_of(name: str) -> str:
    """The path of a callable's module, found without ``importlib``, which would run the packages around it."""
    places: list[str | None] = []
    parts = name.partition(":")[0].split(".")
    path: Any = None
    with working_directory():
        for count in range(1, len(parts) + 1):
            module = ".".join(parts[:count])
            found = (finder.find_spec(module, path) for finder in sys.meta_path if parts[count - 1].isidentifier())
            spec = next((spec for spec in found if spec is not None), None)
            if spec is None:
                return "not found"
            path = spec.submodule_search_locations
            places = [spec.origin, *(path or ())]
    return next((place for place in places if place), "no file")


@contextmanager
def working_directory() -> Iterator[None]:
    """A context in which modules in the working directory can be imported, as with ``python -m``.

    External code may import further modules from there.
    """
    folder = str(Path.cwd())
    absent = folder not in sys.path
    if absent:
        sys.path.insert(0, folder)
    try:
        yield
    finally:
        if absent and folder in sys.path:
            sys.path.remove(folder)


def installed(library: str) -> bool:
    """Whether a library is installed. It is not imported."""
    spec = find_spec(library)
    if spec is None:
        return False
    # A folder of that name in the working directory, such as the one that W&B writes, is not the library.
    places = spec.submodule_search_locations or ()
    return spec.origin is not None or any(Path(place).parent != Path.cwd() for place in places)


def pip_install(extra: str) -> str:
    """The command that installs an extra of this package for the Python that runs."""
    return f"{shlex.quote(sys.executable or 'python')} -m pip install 'factor-transfer[{extra}]'"
