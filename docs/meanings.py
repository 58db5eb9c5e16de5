"""What the docstrings of the code say about the keys of a recipe, for the pages and for the JSON Schema."""

import re
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

from docstring_parser import DocstringStyle, parse

from factor_transfer.config.sections import Cache, Checkpoint, Named, Network, Student, Training, Transfer
from factor_transfer.data import Augment, open_data
from factor_transfer.methods import TERMS, Paraphraser, ParaphraserTraining, configured
from factor_transfer.settings import table_type
from factor_transfer.training.checkpoint import CheckpointInterval
from factor_transfer.training.optim import Optimization

# The code whose docstrings describe the keys of each table.
SOURCES: Mapping[str, list[Any]] = {
    "data": [open_data, Named],
    "augment": [Augment],
    "teacher": [Network, Training, Optimization],
    "paraphraser": [Paraphraser, ParaphraserTraining, Training, Optimization],
    "student": [Student, Network, Training, Optimization],
    "cache": [Cache],
    "checkpoint": [Checkpoint, CheckpointInterval],
    "transfer": [Transfer],
    **{f"transfer.{name}": configured(term) for name, term in TERMS.items()},
}


def meanings(sources: Iterable[Any]) -> dict[str, str]:
    """The descriptions of arguments and attributes in the docstrings of functions and classes, by name.

    The keys of an inner table are named with their table, such as ``every.epochs``.
    """
    found: dict[str, str] = {}
    for source in sources:
        for key, field in getattr(source, "model_fields", {}).items():
            if (table := table_type(field.annotation)) is not None:
                found |= {f"{key}.{name}": text for name, text in meanings([table]).items()}
        target = source.func if isinstance(source, partial) else source
        for parameter in parse(target.__doc__ or "", DocstringStyle.GOOGLE).params:
            text = _named(" ".join((parameter.description or "").split()), sys.modules[target.__module__])
            found.setdefault(parameter.arg_name, text[:1].upper() + text[1:] if text[:1].isascii() else text)
    return found


def _named(text: str, module: ModuleType) -> str:
    """A text with the values of the constants that it names, for readers who do not know the code."""

    def value(found: re.Match[str]) -> str:
        constant = getattr(module, found[1], None)
        if isinstance(constant, int):
            return f"{constant >> 30} GiB" if constant >= 2**30 else f"{constant:,}"
        return ", ".join(f"`{name}`" for name in constant) if isinstance(constant, Mapping) else found[0]

    # A recipe's reader cannot look up a class or a function.
    text = re.sub(r"(, see ``\w+``| \(see ``\w+``\))", "", text)
    return re.sub(r"``([A-Z_]+)``", value, text)


def summary(function: Any) -> str:
    """The first sentence of a function's docstring."""
    return parse(function.__doc__ or "", DocstringStyle.GOOGLE).short_description or ""
