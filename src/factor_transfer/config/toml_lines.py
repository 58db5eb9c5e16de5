"""The line numbers of the keys of a TOML document, for messages about recipes.

The TOML parser does not report them. But the lines up to the end of a statement are valid TOML themselves, and the
shortest such beginning of the document that contains a key ends with the statement that defines it.
"""

import re
import tomllib
from collections.abc import Sequence
from typing import Any

from factor_transfer.errors import shown

Key = Sequence[str | int]  # the steps to a value: keys of tables, indices of lists

_MOST_WORK = 10_000_000  # the number of characters parsed to find lines; a recipe of one page needs a thousandth of it


class _TooMuchWork(Exception):
    """The search has parsed more than ``_MOST_WORK`` characters."""


class Lines:
    r"""The lines of a TOML document.

    Args:
        text: the document, with ``\n`` for line breaks.

    Example:
        >>> from factor_transfer.config.toml_lines import Lines
        >>> Lines("[student]\nepochs = 3\nseed = 1").of(["student", "seed"])
        3
    """

    def __init__(self, text: str) -> None:
        self._lines = text.split("\n")
        self._parsed: dict[int, Any] = {}
        self._work = 0

    def of(self, path: Key) -> int | None:
        """The number of the line on which the statement that defines a key begins, counted from 1.

        Args:
            path: the steps to the key. The line of a table is the first one that defines a part of it.

        Returns:
            The number of the line; ``None`` if the document has no such key, is not valid TOML, or has a value of so
            many lines that the search would take minutes.
        """
        low, high = 1, len(self._lines)
        try:
            if not holds(self._upto(high), path):
                return None
            found = high
            while low <= high:
                middle = (low + high) // 2
                # Lines that end within a value are not valid TOML; the next end of a statement is used instead.
                end = next(line for line in range(middle, found + 1) if self._upto(line) is not None)
                if holds(self._upto(end), path):
                    found, high = end, middle - 1
                else:
                    low = end + 1
            while found > 1 and self._upto(found - 1) is None:
                found -= 1
        except _TooMuchWork:
            return None
        return found

    def first_that_fails(self) -> int:
        """The first line at which the parser fails because of a limit of its own, not because of a syntax error."""
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
        """The document in the first ``count`` lines; ``None`` if they are not valid TOML."""
        if count not in self._parsed:
            text = self._text(count)
            self._work += len(text)
            if self._work > _MOST_WORK:
                raise _TooMuchWork
            try:
                self._parsed[count] = tomllib.loads(text)
            except (ValueError, RecursionError):
                self._parsed[count] = None
        return self._parsed[count]


def holds(document: Any, path: Key) -> bool:
    """Whether a document has a value at ``path``."""
    return len(known(document, path)) == len(path)


def known(document: Any, path: Key) -> Key:
    """The longest beginning of ``path`` that a document has."""
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
    """A key as messages show it: dotted, with quotes where TOML needs them."""
    return ".".join(str(step) if re.fullmatch(r"[\w-]+", str(step), re.ASCII) else shown(step) for step in key)
