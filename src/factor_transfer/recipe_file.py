"""From a TOML file and overrides to a recipe, or to one clear message; and back."""

import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from factor_transfer.errors import InputError, suggest
from factor_transfer.presets import with_preset
from factor_transfer.recipe import Recipe, recipe_type


def shipped() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    here = Path(__file__)
    # Beside the package when installed, at the checkout's root when developed.
    for folder in (here.parent / "recipes", here.parents[2] / "recipes"):
        if folder.is_dir():
            return {
                path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.toml"))
            }
    return {}


def read_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        recipe: a path, or the name of a shipped one.
        overrides: ``KEY=VALUE``, the key dotted (``student.epochs``), the value as in TOML; a string may go
            without its quotes.

    Raises:
        InputError: a missing or unreadable file, an unknown key, a wrong type or value.
    """
    path = _find(str(recipe))
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read recipe {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {path} is not valid TOML: {error}") from error
    for override in overrides:
        _override(document, override)
    document.setdefault("name", path.stem)
    try:
        preset = document.get("preset")
        if isinstance(preset, str):
            document = with_preset(document, preset)
        kind = recipe_type(document)
        return kind.model_validate(document)
    except ValidationError as error:
        raise InputError(f"recipe {path}:\n" + "\n".join(f"  {line}" for line in _explain(error, kind))) from None
    except InputError as error:
        raise InputError(f"recipe {path}: {error}") from None


def as_toml(recipe: Recipe) -> str:
    """A recipe with all that it says and all that it leaves to defaults, as TOML: ``read_recipe`` reads it back."""
    # A preset's settings are among the others by now, and must not fill in what was left out since.
    document = recipe.model_dump(mode="json", exclude_none=True, exclude={"preset"})
    tables = {name: value for name, value in document.items() if isinstance(value, dict)}
    lines = [f"{name} = {_value(value)}" for name, value in document.items() if name not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{_key(key)} = {_value(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    """A value in TOML, which writes all but tables as JSON does."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_value(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_value(inner) for inner in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)


def _find(recipe: str) -> Path:
    names = shipped()
    if Path(recipe).exists() or (recipe not in names and recipe.endswith(".toml") and "/" not in recipe):
        return Path(recipe)
    if recipe in names:
        return names[recipe]
    raise InputError(f"there is no recipe {recipe!r}{suggest(recipe, names)}\nGive a path, or a name of `show recipes`")


def _override(document: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    steps = key.split(".")
    if not equals or not all(steps):
        raise InputError(f"{override!r} is not of the form KEY=VALUE, such as student.epochs=10")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a string without its quotes, such as data.root=/a/path
    table: Any = document
    for step in steps[:-1]:
        table = table.setdefault(step, {})
        if not isinstance(table, dict):
            raise InputError(f"{override!r}: {step!r} is a value, not a table of settings")
    table[steps[-1]] = value


def _explain(error: ValidationError, kind: type[BaseModel]) -> Iterator[str]:
    """One line a fault: the key, what is wrong with it, what was given."""
    for fault in error.errors():
        key = ".".join(str(step) for step in fault["loc"]) or "recipe"
        if fault["type"] == "extra_forbidden":
            *table, last = (str(step) for step in fault["loc"])
            yield f"unknown key {key!r}{_suggest_key(kind, table, last)}"
        elif fault["type"] == "missing":
            yield f"{key} is missing"
        elif fault["type"] == "value_error":
            yield f"{key}: {fault['ctx']['error']}"
        else:
            yield f"{key}: {fault['msg']}, got {fault['input']!r}"


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
