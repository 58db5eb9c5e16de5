"""Terms that are defined outside this package: where their code is, importing it in other processes, errors in it."""

import inspect
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from factor_transfer.errors import InputError
from factor_transfer.methods.term import Term

_PACKAGE = __name__.partition(".")[0]


def is_own(term: type[Term]) -> bool:
    """Whether a term is defined outside this package."""
    return term.__module__.partition(".")[0] != _PACKAGE


def source(term: type[Term]) -> Path | None:
    """The source file of a term that is defined outside this package; ``None`` if there is none, as in a notebook."""
    try:
        file = inspect.getsourcefile(term) if is_own(term) else None
    except (TypeError, OSError):  # a class without a file, as in a notebook
        file = None
    return Path(file) if file and Path(file).is_file() else None


class Location(NamedTuple):
    """Where another process finds a term.

    Attributes:
        module: the name of the module that defines it; ``"__main__"`` for a script.
        file: the source file of the module.
        name: the qualified name of the class.
    """

    module: str
    file: Path
    name: str


def locate(term: type[Term]) -> Location | None:
    """Where another process can import a term from; ``None`` if it cannot, as from a notebook or a function."""
    file = source(term)
    try:
        found = attrgetter(term.__qualname__)(sys.modules[term.__module__])
    except AttributeError:
        return None
    return Location(term.__module__, file.resolve(), term.__qualname__) if file is not None and found is term else None


def load(place: Location) -> type[Term]:
    """Import a term in another process than the one that has located it.

    Raises:
        InputError: if its module cannot be imported.
    """
    try:
        module = _script(place.file) if place.module == "__main__" else import_module(place.module)
        term: type[Term] = attrgetter(place.name)(module)
        return term
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, SystemExit):
            reason = 'it runs a program when it is imported; put `main()` under `if __name__ == "__main__":`'
        raise InputError(
            f"another process cannot import the term {place.name} from {place.file}: {reason}; --jobs 1 needs no other "
            "process"
        ) from error


def _script(file: Path) -> ModuleType:
    """The module of a script, which is imported once and not run as a program."""
    name = f"_script_{file.stem}"
    if name not in sys.modules:
        spec = spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


@contextmanager
def errors_of(name: str, term: type[Term], doing: str) -> Iterator[None]:
    """A context that names the term and its line in errors of a term that is defined outside this package.

    Args:
        name: the name of the term.
        term: its class.
        doing: the method that is called, such as ``"forward"``.

    Raises:
        InputError: an error of any other kind was raised, unless memory is exhausted.
    """
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        file = source(term)
        if file is None or type(error).__name__ == "OutOfMemoryError":
            raise
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file]
        place = f"{file}, line {lines[-1]}" if lines else str(file)
        what = (str(error).strip().splitlines() or ["no message"])[0]
        raise InputError(f"{doing} of the term {name!r} failed: {type(error).__name__}: {what} ({place})") from error
