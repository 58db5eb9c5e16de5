"""Errors that users can correct, and helpers for their messages."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

_MAX_SHOWN = 80  # characters of a value in a message


class InputError(ValueError):
    """Bad input, such as a damaged file, an invalid recipe, an unknown name or a wrong shape.

    The message states what was given, what was expected and what to do. The command line prints it without a traceback
    and exits with code 2.

    Attributes:
        key: the path of the recipe's key that caused the error; empty if no key did.
    """

    key: tuple[str | int, ...] = ()


class Diverged(InputError):
    """A training whose losses or weights are no longer finite, usually because of unsuitable settings."""


class Interrupted(BaseException):
    """A stop that the user or the system requested.

    It does not derive from ``Exception``, so that handlers of errors do not catch it.

    Args:
        saved: what was saved.
        signal: the number of the signal that requested the stop.
        remedy: how to resume.
    """

    def __init__(self, saved: str, signal: int = 2, remedy: str = "The same command resumes from there") -> None:
        super().__init__(f"{saved}\n{remedy}".rstrip())
        self.saved, self.signal = saved, signal


def first_line(error: Exception) -> str:
    """The first line of an error's message, because PyTorch's messages can fill a screen."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def is_of_memory(error: Exception) -> bool:
    """Whether an error was caused by insufficient memory, for which PyTorch raises several kinds of RuntimeError."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error))


def choose(kind: str, name: str, valid: Iterable[str]) -> str:
    """Return ``name`` if it is one of ``valid``; otherwise raise an error that suggests the nearest valid names.

    Args:
        kind: the kind of thing that has the name, for the message of an error, such as ``"model"``.
        name: the given name.
        valid: the valid names.

    Raises:
        InputError: if ``name`` is not valid.
    """
    valid = list(valid)
    if name in valid:
        return name
    raise InputError(f"unknown {kind} {shown(name)}{suggest(name, valid)}")


def suggest(name: str, valid: Iterable[str]) -> str:
    """A clause for a message about an invalid ``name`` that gives the nearest valid names, or else the first ones."""
    valid = list(valid)
    near = [one for one in valid if one.lower() == name.lower()] or get_close_matches(name, valid, n=3, cutoff=0.5)
    if near:
        return f"; did you mean {' or '.join(repr(n) for n in near)}?"
    return f"; valid names are {', '.join(valid[:12])}{', …' if len(valid) > 12 else ''}"


@contextmanager
def about(*key: str) -> Iterator[None]:
    """A context that sets the ``key`` of an ``InputError`` to the recipe's key that is being processed."""
    try:
        yield
    except InputError as error:
        error.key = key
        raise


_JOINERS = "\u200c\u200d"  # format characters that are parts of words in Persian, Hindi and other languages


def is_text(value: str) -> bool:
    """Whether a string can be encoded as UTF-8. The name of a file may have bytes that cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str, newlines: bool = False) -> str:
    """Escape the characters of a text, which may come from a file, that a terminal would interpret.

    Args:
        text: any text. Control characters, escape sequences, marks that change the writing direction, and characters
            that cannot be encoded are replaced by Python's escapes.
        newlines: whether line breaks are left unescaped.
    """
    if text.isprintable():
        return text
    allowed = _JOINERS + ("\n" if newlines else "")
    return "".join(
        char if char.isprintable() or char in allowed else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def shown(value: Any) -> str:
    """The ``repr`` of a value for a message, shortened if it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer with thousands of digits, or deeply nested tables
        return f"a value that is too large to be shown ({type(value).__name__})"
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 2]}…{text[-1]}"
