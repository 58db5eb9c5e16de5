"""The names of a recipe's keys, known without importing the code that they configure.

The settings of a recipe are read from the signatures of the code that trains, which takes PyTorch more than a second to
import. ``recipe.schema.json``, a JSON Schema for editors, lists them too, so that a misspelt name is reported at once.
``tools/make_schema.py`` writes it from the code.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from factor_transfer.config.toml_lines import Key, key_text
from factor_transfer.errors import about, choose, suggest
from factor_transfer.settings import table_type

SCHEMA = Path(__file__).with_name("recipe.schema.json")

Keys = dict[str, Any]  # the names of a table's keys: ``Keys`` for a table of known keys, ``None`` for anything else


def keys_of(document: Mapping[str, Any]) -> Keys:
    """The names of all keys that a document may have, given the data set and the models that it names.

    Args:
        document: the parsed TOML document.

    Raises:
        InputError: if the data set or a model does not exist.

    Example:
        >>> from factor_transfer.config.keys import keys_of
        >>> keys_of({"student": {"model": "vgg8"}})["student"]["args"]
        {}
        >>> list(keys_of({})["cache"])
        ['views', 'seed']
    """
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    for table, key, kind in (
        ("data", "name", "data set"),
        ("teacher", "model", "teacher.model"),
        ("student", "model", "student.model"),
    ):
        section = document.get(table)
        name = section.get(key) if isinstance(section, Mapping) else None
        known, outside = schema["properties"][table]["properties"][key]["anyOf"]
        if isinstance(name, str) and not re.search(outside["pattern"], name):
            with about(table, key):
                choose(kind, name, known["enum"])
    return _keys(schema, document) or {}


def _keys(schema: Mapping[str, Any], value: object) -> Keys | None:
    """The names that a schema allows in a table, of which only ``properties`` and this package's rules are read."""
    if "properties" not in schema:
        return None
    section = value if isinstance(value, Mapping) else {}
    found: Keys = {key: _keys(inner, section.get(key)) for key, inner in schema["properties"].items()}
    for rule in schema.get("allOf", []):
        ((key, condition),) = rule["if"]["properties"].items()
        name = section.get(key)
        if name in condition["enum"] if "enum" in condition else re.search(condition["pattern"], str(name)):
            then = rule["then"]
            allowed = then.get("propertyNames", {}).get("enum", found)
            found = {key: found[key] for key in allowed}
            found |= {key: _keys(inner, section.get(key)) for key, inner in then.get("properties", {}).items()}
    return found


def keys_of_type(kind: type[BaseModel]) -> Keys:
    """The names of all keys of a type of recipe, see ``recipe_type``, which are those of ``keys_of``."""
    models = {name: table_type(field.annotation) for name, field in kind.model_fields.items()}
    tables = {name: model for name, model in models.items() if model and model.model_config.get("extra") != "allow"}
    return {name: keys_of_type(tables[name]) if name in tables else None for name in models}


def unknown_keys(document: Mapping[str, Any], keys: Keys) -> Iterator[tuple[Key, str]]:
    """The keys of a document that do not exist: the steps to each, and a description.

    Args:
        document: the parsed TOML document.
        keys: the names of all keys, see ``keys_of``.
    """

    def within(table: Mapping[str, Any], known: Keys, path: tuple[str, ...]) -> Iterator[tuple[Key, str]]:
        for key, value in table.items():
            if key not in known:
                yield (*path, key), unknown_key((*path, key), keys)
            elif isinstance(value, Mapping) and known[key] is not None:
                yield from within(value, known[key], (*path, key))

    yield from within(document, keys, ())


def unknown_key(path: Key, keys: Keys) -> str:
    """The description of an unknown key, with the same key of other tables or the nearest keys of its own.

    Args:
        path: the steps to the key.
        keys: the names of all keys, see ``keys_of``.
    """
    *tables, key = (str(step) for step in path)
    elsewhere = [name for name in _leaves(keys, "") if name.split(".")[-1] == key]
    if elsewhere:
        hint = f"; did you mean {' or '.join(repr(name) for name in elsewhere)}?"
    else:
        for table in tables:
            keys = keys[table]
        hint = suggest(key, keys)
    if tables == ["transfer"] and "did you mean" not in hint:
        hint += "; a term of your own is known to the script that defines it: run that in place of factor-transfer"
    return f"unknown key '{key_text(path)}'{hint}"


def _leaves(keys: Keys, prefix: str) -> Iterator[str]:
    """The dotted names of all keys that are no tables of known keys."""
    for key, inner in keys.items():
        if inner is None:
            yield prefix + key
        else:
            yield from _leaves(inner, f"{prefix}{key}.")
