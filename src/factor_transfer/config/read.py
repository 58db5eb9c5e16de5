"""From a TOML file and overrides to a recipe, or to one clear message; and back."""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ValidationError

from factor_transfer.config.toml_lines import Key, Lines, key_text, known
from factor_transfer.config.toml_values import check_values
from factor_transfer.errors import InputError, about, shown, suggest

if TYPE_CHECKING:
    from factor_transfer.config.recipe import Recipe

_LARGEST = 2**18  # bytes of a recipe
_SHOWN = 8  # faults: a screen has room for so many


def shipped() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    here = Path(__file__)
    # Beside the package when installed, at the checkout's root when developed.
    for folder in (here.parents[1] / "recipes", here.parents[3] / "recipes"):
        if folder.is_dir():
            return {
                path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.toml"))
            }
    return {}


def read_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> "Recipe":
    """Read a recipe.

    Args:
        recipe: a path, or the name of a shipped one.
        overrides: ``KEY=VALUE``, the key dotted (``student.epochs``), the value as in TOML; a string may go
            without its quotes.

    Raises:
        InputError: a missing or unreadable file, an unknown key, a wrong type or value; it names each key, and the line
            or the override that says it.
    """
    path = _find(str(recipe))
    text = _read(path)
    document = _parse(path, text)
    for override in overrides:
        _override(document, override)
    # What a recipe is made of takes PyTorch to import: a file that is not there, or no TOML, need not wait for it.
    from factor_transfer.config.presets import with_preset
    from factor_transfer.config.recipe import recipe_type

    origin = _Origin(text, overrides, document)
    try:
        check_values(document)
        document.setdefault("name", path.stem)
        preset = document.get("preset")
        if isinstance(preset, str):
            with about("preset"):
                document = with_preset(document, preset)
            origin.merged = document
        kind = recipe_type(document)
        return kind.model_validate(document)
    except ValidationError as error:
        faults = list(_explain(error, kind, document))
    except InputError as error:
        faults = [(error.key, str(error))]
    lines = [f"  {origin.of(key)}{fault}" for key, fault in faults[:_SHOWN]]
    more = [f"  … and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
    raise InputError("\n".join([f"recipe {path}:", *lines, *more]))


def as_toml(recipe: "Recipe") -> str:
    """A recipe with all that it says and all that it leaves to defaults, as TOML: ``read_recipe`` reads it back."""
    # A preset's settings are among the others by now, and must not fill in what was left out since.
    document = recipe.model_dump(mode="json", exclude_none=True, exclude={"preset"})
    tables = {name: value for name, value in document.items() if isinstance(value, dict)}
    lines = [f"{name} = {toml_value(value)}" for name, value in document.items() if name not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{_key(key)} = {toml_value(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def toml_value(value: Any) -> str:
    """A value as TOML, which writes all but tables as JSON does."""
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
        f"there is no recipe {shown(recipe)}{suggest(recipe, names)}\nGive a path, or a name of `show recipes`"
    )


def _read(path: Path) -> str:
    """The text of a recipe, with newlines for line breaks."""
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise InputError(f"cannot read recipe {path}: {getattr(error, 'strerror', error)}") from error
    if len(content) > _LARGEST:
        raise InputError(f"recipe {path} has more than {_LARGEST:,} bytes; is it one?")
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
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, lists in lists in lists
        line = Lines(text).first_that_fails()
        why = "is nested too deeply" if isinstance(error, RecursionError) else f"has a value that cannot be: {error}"
        raise InputError(f"recipe {path} is not valid TOML: line {line} {why}") from error


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
    # One value, and no line of its own after it; or else a string without its quotes, such as data.root=/a/path.
    value = value["value"] if value is not None and len(value) == 1 else text
    table: Any = document
    for step in steps[:-1]:
        table = table.setdefault(step, {})
        if not isinstance(table, dict):
            raise InputError(f"{shown(override)}: {shown(step)} is a value, not a table of settings")
    table[steps[-1]] = value


class _Origin:
    """Where what a recipe says comes from.

    Args:
        text: of the file.
        overrides: of what it says.
        merged: what comes of both, and of a preset.
    """

    def __init__(self, text: str, overrides: Sequence[str], merged: Mapping[str, Any]) -> None:
        self.lines, self.overrides, self.merged = Lines(text), overrides, merged

    def of(self, key: Key) -> str:
        """A clause that goes before what is wrong with a key: the override or the line that says it."""
        here = list(known(self.merged, key))
        if not here:
            return ""
        for override in reversed(self.overrides):
            if here[: len(_steps(override))] == _steps(override):
                return f"{shown(override)[1:-1]}: "
        line = self.lines.of(here)
        if line is None:
            for override in self.overrides:  # it made the table
                if _steps(override)[: len(here)] == here:
                    return f"{shown(override)[1:-1]}: "
        while line is None and here:
            line = self.lines.of(here := here[:-1])
        return f"line {line}: " if here else ""


def _explain(error: ValidationError, kind: type[BaseModel], document: Mapping[str, Any]) -> Iterator[tuple[Key, str]]:
    """What is at fault, one key after the other: its steps, and in words what is wrong with it and what was given."""
    for fault in error.errors():
        # Behind the key, pydantic says which of several types it tried.
        loc = fault["loc"] if fault["type"] == "missing" else known(document, fault["loc"])
        cause = fault["ctx"]["error"] if fault["type"] == "value_error" else None
        loc = known(document, getattr(cause, "key", ())) or loc
        key = key_text(loc) or "recipe"
        if fault["type"] == "extra_forbidden":
            *table, last = (str(step) for step in loc)
            yield loc, f"unknown key '{key}'{_suggest_key(kind, table, last)}"
        elif fault["type"] == "missing":
            yield loc, f"{key} is missing"
        elif cause is not None:
            yield loc, f"{key}: {cause}"
        else:
            yield loc, f"{key}: {fault['msg']}, got {shown(fault['input'])}"


def _suggest_key(kind: type[BaseModel], table: list[str], key: str) -> str:
    """The nearest keys of the same table, or the same key in another one."""
    elsewhere = [path for path in _keys(kind, "") if path.split(".")[-1] == key]
    if elsewhere:
        return f"; did you mean {' or '.join(repr(path) for path in elsewhere)}?"
    for step in table:
        kind = _model(kind.model_fields[step].annotation) or kind
    return suggest(key, kind.model_fields)


def _keys(kind: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in kind.model_fields.items():
        inner = _model(field.annotation)
        if inner is None:
            yield prefix + name
        else:
            yield from _keys(inner, f"{prefix}{name}.")


def _model(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation, which may be ``Model`` or ``Model | None``."""
    for part in get_args(annotation) if isinstance(annotation, UnionType) else [annotation]:
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None
