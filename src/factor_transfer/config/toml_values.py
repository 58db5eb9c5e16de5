"""Values that the TOML parser accepts, but no setting of a recipe can have."""

import math
from collections.abc import Mapping
from typing import Any

from factor_transfer.config.toml_lines import Key, key_text
from factor_transfer.errors import InputError, is_text, shown

_DEEPEST = 16  # the deepest nesting of tables; a recipe needs four levels


def check_values(document: Mapping[str, Any]) -> None:
    r"""Reject integers of more than 64 bits, infinite numbers, strings with ``\0`` or broken UTF-8, and deep nesting.

    Args:
        document: the parsed TOML document.

    Raises:
        InputError: if there is such a value; the message names its key.
    """
    pending: list[tuple[Key, Any]] = [((), document)]
    while pending:
        key, value = pending.pop()
        fault = None
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            fault = f"an integer should be less than 2**63 in size, got {shown(value)}"
        elif isinstance(value, float) and not math.isfinite(value):
            fault = f"a number should be finite, got {value}"
        elif isinstance(value, str) and "\0" in value:  # to the operating system, it would end a file's name
            fault = f"a string should not contain the character 0, got {shown(value)}"
        elif isinstance(value, str) and not is_text(value):
            fault = f"a string should be UTF-8, got {shown(value)}"
        elif isinstance(value, dict | list) and len(key) > _DEEPEST:
            fault = "the tables are nested too deeply"
        if fault:
            error = InputError(f"{key_text(key)}: {fault}")
            error.key = tuple(key)
            raise error
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        pending += [((*key, step), part) for step, part in inner]
