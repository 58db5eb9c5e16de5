"""On which line of a recipe a key stands.

The TOML parser does not say. But the lines up to the end of a statement are TOML, too, and the first of them that hold
a key end where it is said.
"""

import re
import tomllib
from collections.abc import Sequence
from typing import Any

from factor_transfer.errors import shown

Key = Sequence[str | int]  # the steps to it; a number is a place in a list

_MOST_WORK = 10_000_000  # characters that are parsed for a line; a recipe of a page needs a thousandth


class _Lost(Exception):
    """It is too much work."""


class Lines:
    """The lines of a TOML document.

    Args:
        text: of it; line breaks are newlines.
    """

    def __init__(self, text: str) -> None:
        self._lines = text.split("\n")
        self._parsed: dict[int, Any] = {}
        self._work = 0

    def of(self, path: Key) -> int | None:
        """The line where the statement begins that says what is at ``path``, from 1.

        Args:
            path: of a key. A table's is the first line that has it.

        Returns:
            ``None`` if the document has no such key, is no TOML, or holds a value of so many lines that to look for
            another would take minutes.
        """
        low, high = 1, len(self._lines)
        try:
            if not holds(self._upto(high), path):
                return None
            found = high
            while low <= high:
                middle = (low + high) // 2
                # What ends within a value is no TOML; it goes on to that value's end.
                end = next(line for line in range(middle, found + 1) if self._upto(line) is not None)
                if holds(self._upto(end), path):
                    found, high = end, middle - 1
                else:
                    low = end + 1
            while found > 1 and self._upto(found - 1) is None:
                found -= 1
        except _Lost:
            return None
        return found

    def first_that_fails(self) -> int:
        """The first line at which the parser raises an error that is not about TOML, but about itself."""
        low, high = 1, len(self._lines)
        while low < high:
            middle = (low + high) // 2
            try:
                tomllib.loads(self._text(middle))
                fails = False
            except (ValueError, RecursionError) as error:
                fails = not isinstance(error, tomllib.TOMLDecodeError)
            low, high = (low, middle) if fails else (middle + 1, high)
        return low

    def __len__(self) -> int:
        return len(self._lines)

    def _text(self, count: int) -> str:
        return "\n".join(self._lines[:count]) + "\n"

    def _upto(self, count: int) -> Any:
        """What the first lines say; ``None`` if they are no TOML."""
        if count not in self._parsed:
            text = self._text(count)
            self._work += len(text)
            if self._work > _MOST_WORK:
                raise _Lost
            try:
                self._parsed[count] = tomllib.loads(text)
            except (ValueError, RecursionError):
                self._parsed[count] = None
        return self._parsed[count]


def holds(document: Any, path: Key) -> bool:
    """Whether a document has something at ``path``."""
    return len(known(document, path)) == len(path)


def known(document: Any, path: Key) -> Key:
    """As much of ``path`` as a document has."""
    for count, step in enumerate(path):
        if not isinstance(document, dict | list):
            return path[:count]
        inner: Any = document
        try:
            document = inner[step]
        except (KeyError, IndexError, TypeError):
            return path[:count]
    return path


def key_text(key: Key) -> str:
    """A key as a message names it: dotted, with quotes where TOML has them."""
    return ".".join(str(step) if re.fullmatch(r"[\w-]+", str(step), re.ASCII) else shown(step) for step in key)
