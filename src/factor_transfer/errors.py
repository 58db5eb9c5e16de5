"""What a person did that cannot work, said in words that help."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

_LONG = 80  # characters; more of what was given helps nobody


class InputError(ValueError):
    """Bad input: a file, a recipe, a name, a shape that does not fit.

    The message says what was given, what was expected and what to do. The command line prints it
    without a traceback and exits with code 2.

    Attributes:
        key: the steps to the recipe's key that is at fault, where one is.
    """

    key: tuple[str | int, ...] = ()


class Diverged(InputError):
    """Figures of a training are no longer finite: its settings do not suit it."""


class Interrupted(BaseException):
    """Somebody asked to stop: a person, or a system. The message says what was kept and how to go on.

    It is no ``Exception``, so that nothing that copes with those takes it for one.

    Args:
        message: for the person.
        signal: the number of the signal that asked.
    """

    def __init__(self, message: str, signal: int = 2) -> None:
        super().__init__(message)
        self.signal = signal


def first_line(error: Exception) -> str:
    """The first line of a message; PyTorch's run over a screen."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def is_of_memory(error: Exception) -> bool:
    """Whether there was too little memory: PyTorch's allocators raise RuntimeErrors of several kinds."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error))


def choose(kind: str, name: str, valid: Iterable[str]) -> str:
    """Return ``name`` if it is one of ``valid``; otherwise say which valid names are nearest.

    Args:
        kind: what is being named, for the message, such as ``"model"``.
        name: the name that was given.
        valid: the names that exist.

    Raises:
        InputError: if ``name`` is not valid.
    """
    valid = list(valid)
    if name in valid:
        return name
    raise InputError(f"unknown {kind} {shown(name)}{suggest(name, valid)}")


def suggest(name: str, valid: Iterable[str]) -> str:
    """A clause that goes behind a wrong ``name``: its nearest valid names, or all of a few."""
    valid = list(valid)
    near = get_close_matches(name, valid, n=3, cutoff=0.5)
    if near:
        return f"; did you mean {' or '.join(repr(n) for n in near)}?"
    return f"; valid are: {', '.join(valid[:12])}{', …' if len(valid) > 12 else ''}"


@contextmanager
def about(*key: str) -> Iterator[None]:
    """While something is made of a recipe's key, an ``InputError`` is about that key."""
    try:
        yield
    except InputError as error:
        error.key = key
        raise


_JOINERS = "\u200c\u200d"  # format characters that are part of words, in Persian, Hindi and others


def printable(text: str, newlines: bool = False) -> str:
    """Text that may come from a file, with nothing in it that a terminal would obey instead of showing it.

    Args:
        text: any; control characters, escape sequences, marks that turn the direction of writing, and what no encoding
            can hold are written as Python would write them.
        newlines: whether line breaks stay as they are.
    """
    if text.isprintable():
        return text
    kept = _JOINERS + ("\n" if newlines else "")
    return "".join(
        one if one.isprintable() or one in kept else one.encode("unicode_escape").decode("ascii") for one in text
    )


def shown(value: Any) -> str:
    """What was given, for a message: on one line, and not long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, tables within tables within tables
        return f"what is too large to be shown ({type(value).__name__})"
    return text if len(text) <= _LONG else f"{text[: _LONG - 2]}…{text[-1]}"
