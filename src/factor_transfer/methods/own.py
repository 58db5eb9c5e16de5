"""Terms that are defined outside this package: where their code is, and errors in it."""

import inspect
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    except TypeError:  # a class without a file
        file = None
    return Path(file) if file and Path(file).is_file() else None


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
