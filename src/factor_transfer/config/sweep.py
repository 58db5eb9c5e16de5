"""Sweeps: several values of one setting, each of which makes a row of a comparison.

A row is named by its method and, if a setting is swept, by that setting: ``"factor,transfer.factor.beta=50"``.
"""

import re
from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

from factor_transfer.config.read import with_setting
from factor_transfer.errors import InputError, choose, shown

if TYPE_CHECKING:
    from factor_transfer.config.recipe import Recipe

_OF_ALL_TERMS = "transfer.schedule"
# Two or more plain values (numbers, booleans or words) separated by commas: neither TOML's lists nor paths.
_VALUES = re.compile(r"[\w.+-]+(\s*,\s*[\w.+-]+)+")


class Sweep(NamedTuple):
    """The values of one setting.

    Attributes:
        key: the dotted key of the setting, in ``[student]`` or ``[transfer.*]``, or ``"transfer.schedule"``.
        values: the values as they were written.
    """

    key: str
    values: Sequence[str]

    def rows(self, methods: Sequence[str], recipe: "Recipe") -> list[str]:
        """The rows of a comparison of ``methods``.

        A setting of a term makes a row per value of each method that has the term, ``"transfer.schedule"`` one of each
        method that has terms, and a setting of the student one of every method. The student alone with the recipe's own
        settings is always the first row.

        Args:
            methods: the methods, with the student alone among them.
            recipe: the recipe.

        Raises:
            InputError: if no method has the term, or a value is invalid.
        """
        # Imported here, because it imports PyTorch: a mistake in the recipe is reported without that delay.
        from factor_transfer.config.recipe import ALONE, parse_method

        settings = [f"{self.key}={value}" for value in self.values]
        changed = {setting: with_setting(recipe, setting) for setting in settings}
        contents = {setting: each.model_dump(exclude={"variant"}) for setting, each in changed.items()}
        for one, other in combinations(contents, 2):
            if contents[one] == contents[other]:
                raise InputError(f"{one} and {other} are the same setting")
        table, name, *_ = self.key.split(".")

        def has(method: str) -> bool:
            terms = parse_method(method)
            return table == "student" or (bool(terms) if self.key == _OF_ALL_TERMS else name in terms)

        swept = [method for method in methods if has(method)]
        if not swept:
            term = "terms" if self.key == _OF_ALL_TERMS else f"the term {name!r}"
            raise InputError(f"{self.key} has several values, but no method of --methods has {term}")
        # The student alone that has the recipe's own value is the first row, and is not trained twice.
        own = [setting for setting in settings if changed[setting].student.model_dump() == recipe.student.model_dump()]
        rows = [ALONE] if ALONE in methods else []
        for method in methods:
            if method not in swept:
                rows += [method] if method != ALONE else []
            else:
                rows += [f"{method},{setting}" for setting in settings if method != ALONE or setting not in own]
        return rows


def split_sweep(overrides: Sequence[str]) -> tuple[Sweep | None, list[str]]:
    """Find the override that has several values, separated by commas.

    Args:
        overrides: changes to a recipe as ``KEY=VALUE``.

    Returns:
        The sweep, or ``None`` if there is none, and the other overrides.

    Raises:
        InputError: if several settings have several values, the setting cannot be swept, or a value is given twice.
    """
    swept = [override for override in overrides if _VALUES.fullmatch(override.partition("=")[2])]
    if not swept:
        return None, list(overrides)
    if len(swept) > 1:
        raise InputError(
            f"{shown(swept[0])[1:-1]} and {shown(swept[1])[1:-1]}: only one setting can have several values"
        )
    key, _, text = swept[0].partition("=")
    values = [value.strip() for value in text.split(",")]
    _check_key(key, text)
    for value in values:
        if values.count(value) > 1:
            raise InputError(f"{key} has the value {value} twice")
    return Sweep(key, values), [override for override in overrides if override != swept[0]]


def _check_key(key: str, text: str) -> None:
    steps = key.split(".")
    if key == "student.seed":
        raise InputError(f"{key}={text}: --seeds N trains every method with N seeds, of which {key} is the first")
    if key == "transfer.method":
        raise InputError(f"{key}={text}: --methods names the methods to compare")
    if (steps[0], len(steps) > 1) == ("student", True) or key == _OF_ALL_TERMS:
        return
    if steps[0] == "transfer" and len(steps) > 2:
        from factor_transfer.methods import TERMS

        choose("method", steps[1], TERMS)
        return
    raise InputError(
        f"{key}={text}: only settings of [student] and [transfer.*] can have several values, since teacher, "
        f"paraphraser and images are the same for all. A single value with commas has quotes: {key}='\"{text}\"'"
    )
