"""Reading a recipe from a TOML file and overrides, with one clear message about all its errors; and writing it back."""

import json
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from factor_transfer.config.keys import keys_of, keys_of_type, unknown_key, unknown_keys
from factor_transfer.config.presets import with_preset
from factor_transfer.config.toml_lines import Key, Lines, key_text, known
from factor_transfer.config.toml_values import check_values
from factor_transfer.errors import InputError, about, shown, suggest

if TYPE_CHECKING:
    from factor_transfer.config.recipe import Recipe

_LARGEST = 2**18  # the largest size of a recipe, in bytes
_SHOWN = 8  # the number of faults that a message lists, so that it fits on a screen


def shipped() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    module = Path(__file__)
    # In the package when it is installed, at the root of the repository in a checkout.
    for folder in (module.parents[1] / "recipes", module.parents[3] / "recipes"):
        if folder.is_dir():
            return {
                path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.toml"))
            }
    return {}


def read_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> "Recipe":
    """Read and validate a recipe.

    Args:
        recipe: the path of the recipe, or the name of one that comes with the package.
        overrides: changes to the recipe as ``KEY=VALUE``, with a dotted key (``student.epochs``) and a TOML value;
            strings need no quotes.

    Raises:
        InputError: if the file cannot be read, or a key or value is invalid. The message names each invalid key with
            its line or its override.
    """
    path = _find(str(recipe))
    text = _read(path)
    document = _parse(path, text)
    for override in overrides:
        _override(document, override)
    return _validated(document, _Origin(text, overrides, document), f"recipe {path}", path.stem)


def _validated(document: dict[str, Any], origin: "_Origin", place: str, name: str = "") -> "Recipe":
    """The recipe of a document, with ``name`` as its name if it has none."""
    try:
        check_values(document)
        document.setdefault("name", name)
        preset = document.get("preset")
        if isinstance(preset, str):
            with about("preset"):
                document = with_preset(document, preset)
            origin.merged = document
        # Reports a misspelt key without importing PyTorch. Once it is imported, there may be terms of the user's own.
        faults = [] if "torch" in sys.modules else list(unknown_keys(document, keys_of(document)))
        if not faults:
            from factor_transfer.config.recipe import recipe_type

            kind = recipe_type(document)
            return kind.model_validate(document)
    except ValidationError as error:
        faults = list(_explain(error, kind, document))
    except InputError as error:
        faults = [(error.key, str(error))]
    lines = [f"  {_located(origin.of(key), fault)}" for key, fault in faults[:_SHOWN]]
    more = [f"  … and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
    raise InputError("\n".join([f"{place}:", *lines, *more]))


def _located(origin: str, fault: str) -> str:
    """A fault with its origin in front, whose key is not repeated if the origin is an override of this key."""
    key, colon, rest = fault.partition(": ")
    return f"{origin}{rest}" if colon and origin.startswith(f"{key}=") else f"{origin}{fault}"


def with_setting(recipe: "Recipe", setting: str) -> "Recipe":
    """A copy of a recipe with one setting changed, whose ``variant`` is that setting.

    Args:
        recipe: the recipe.
        setting: the change as ``KEY=VALUE``, see ``read_recipe``.

    Raises:
        InputError: if the key or the value is invalid.
    """
    document = _document(recipe)
    if setting.startswith("student.model="):
        # The document has the defaults of the recipe's own network, which another network does not share.
        args = recipe.student.args.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
        document["student"]["args"] = args
    _override(document, setting)
    return _validated({**document, "variant": setting}, _Origin("", [setting], document), f"recipe {recipe.name}")


def as_toml(recipe: "Recipe") -> str:
    """A recipe with all its settings, including the defaults, as TOML that ``read_recipe`` can read."""
    document = _document(recipe)
    tables = {name: value for name, value in document.items() if isinstance(value, dict)}
    lines = [f"{name} = {toml_value(value)}" for name, value in document.items() if name not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{_key(key)} = {toml_value(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _document(recipe: "Recipe") -> dict[str, Any]:
    # The settings of the preset are already merged, and must not replace settings that were removed since.
    return recipe.model_dump(mode="json", exclude_none=True, exclude={"preset"})


def toml_value(value: Any) -> str:
    """A value as TOML, whose syntax is that of JSON except for tables."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {toml_value(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(toml_value(inner) for inner in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)


def _find(recipe: str) -> Path:
    names = shipped()
    if Path(recipe).exists() or (recipe not in names and recipe.endswith(".toml") and "/" not in recipe):
        return Path(recipe)
    if recipe in names:
        return names[recipe]
    raise InputError(
        f"there is no recipe {shown(recipe)}{suggest(recipe, names)}\n"
        "Give the path of a recipe, or a name that `factor-transfer show recipes` lists"
    )


def _read(path: Path) -> str:
    r"""The text of a recipe, with ``\n`` for line breaks."""
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except (OSError, ValueError) as error:  # ValueError: the name has a character that no file name can have
        raise InputError(f"cannot read recipe {path}: {getattr(error, 'strerror', error)}") from error
    if len(content) > _LARGEST:
        raise InputError(f"recipe {path} has more than {_LARGEST:,} bytes, too many for a recipe")
    try:
        return content.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"recipe {path} is not valid TOML: line {line}: {error}") from error


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        lines = Lines(text)
        fault = str(error).replace("at end of document", f"at line {len(lines)}, the end")
        raise InputError(f"recipe {path} is not valid TOML: {fault}") from error
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, or deeply nested lists
        line = Lines(text).first_that_fails()
        reason = "is nested too deeply" if isinstance(error, RecursionError) else f"has an invalid value: {error}"
        raise InputError(f"recipe {path} is not valid TOML: line {line} {reason}") from error


def _steps(override: str) -> list[str]:
    return override.partition("=")[0].split(".")


def _override(document: dict[str, Any], override: str) -> None:
    steps, text = _steps(override), override.partition("=")[2]
    if "=" not in override or not all(steps):
        raise InputError(f"{shown(override)} is not of the form KEY=VALUE, such as student.epochs=10")
    try:
        value: Any = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        value = None
    # A single TOML value without further lines; anything else is a string without quotes, such as data.root=/a/path.
    value = value["value"] if value is not None and len(value) == 1 else text
    table: Any = document
    for step in steps[:-1]:
        table = table.setdefault(step, {})
        if not isinstance(table, dict):
            raise InputError(f"{shown(override)}: {shown(step)} is a value, not a table of settings")
    table[steps[-1]] = value


class _Origin:
    """The origin of each setting of a recipe: a line of the file, or an override.

    Args:
        text: the text of the file.
        overrides: the overrides, as ``KEY=VALUE``.
        merged: the document with the overrides, and the preset, applied.
    """

    def __init__(self, text: str, overrides: Sequence[str], merged: Mapping[str, Any]) -> None:
        self.lines, self.overrides, self.merged = Lines(text), overrides, merged

    def of(self, key: Key) -> str:
        """The beginning of a message about a key: the override or the line that sets it; empty if neither does."""
        path = list(known(self.merged, key))
        if not path:
            return ""
        for override in reversed(self.overrides):
            if path[: len(_steps(override))] == _steps(override):
                return f"{shown(override)[1:-1]}: "
        line = self.lines.of(path)
        if line is None:
            for override in self.overrides:  # an override may have created the table
                if _steps(override)[: len(path)] == path:
                    return f"{shown(override)[1:-1]}: "
        while line is None and path:
            line = self.lines.of(path := path[:-1])
        return f"line {line}: " if path else ""


_REMEDIES = {
    "transfer": '; add the table [transfer.factor], or [transfer] with method = "student", which needs no teacher',
    **{table: f"; add the table [{table}]" for table in ("data", "teacher", "student")},
}


def _explain(error: ValidationError, kind: type[BaseModel], document: Mapping[str, Any]) -> Iterator[tuple[Key, str]]:
    """The faults of a document: the steps to each key, and a description of what is wrong and what was given."""
    keys = keys_of_type(kind)
    for fault in error.errors():
        # If several types are allowed, pydantic appends the type that it tried to the key.
        loc = fault["loc"] if fault["type"] == "missing" else known(document, fault["loc"])
        cause = fault["ctx"]["error"] if fault["type"] == "value_error" else None
        loc = known(document, getattr(cause, "key", ())) or loc
        key = key_text(loc) or "recipe"
        if fault["type"] == "extra_forbidden":
            yield loc, unknown_key(loc, keys)
        elif fault["type"] == "missing":
            yield loc, f"{key} is missing{_REMEDIES.get(key, '')}"
        elif cause is not None:
            yield loc, f"{key}: {cause}"
        else:
            yield loc, f"{key}: {fault['msg']}, got {shown(fault['input'])}"
