"""Values that TOML, or its parser, allows and that no setting can have, whatever its name."""

import math
from collections.abc import Mapping
from typing import Any

from factor_transfer.config.toml_lines import Key, key_text
from factor_transfer.errors import InputError, shown

_DEEPEST = 16  # tables within tables; a recipe has four


def check_values(document: Mapping[str, Any]) -> None:
    """Refuse integers of more than 64 bits, numbers that are not finite, character 0, and tables nested deeply.

    Raises:
        InputError: it names the key.
    """
    left: list[tuple[Key, Any]] = [((), document)]
    while left:
        key, value = left.pop()
        fault = None
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            fault = f"an integer should be less than 2**63 in size, got {shown(value)}"
        elif isinstance(value, float) and not math.isfinite(value):
            fault = f"a number should be finite, got {value}"
        elif isinstance(value, str) and "\0" in value:  # the end of a file's name, to the system
            fault = f"a string should not contain the character 0, got {shown(value)}"
        elif isinstance(value, dict | list) and len(key) > _DEEPEST:
            fault = "this is nested too deeply"
        if fault:
            refusal = InputError(f"{key_text(key)}: {fault}")
            refusal.key = tuple(key)
            raise refusal
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        left += [((*key, step), part) for step, part in inner]
