"""Write the JSON Schema of recipes, from the code that the recipes configure.

    python tools/make_schema.py

Editors read it to complete and check recipes (docs/recipes.md), and the package to report a misspelt key before it
imports PyTorch (config/keys.py). A test fails if it is not up to date.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))

from meanings import SOURCES, meanings

from factor_transfer.config.keys import SCHEMA
from factor_transfer.config.presets import PRESETS
from factor_transfer.config.recipe import Recipe, recipe_type
from factor_transfer.config.sections import Named
from factor_transfer.data import DATASETS, data_set, open_data
from factor_transfer.models import MODELS
from factor_transfer.settings import options

Json = dict[str, Any]
OUTSIDE = ":"  # what the name of a data set or a model outside the package contains


def schema() -> Json:
    """The schema."""
    made = recipe_type({}).model_json_schema()
    texts = meanings([Recipe])
    for table, code in SOURCES.items():
        texts |= {f"{table}.{key}": text for key, text in meanings(code).items()}
    root = _plain(made, made["$defs"], texts)
    root["required"].remove("name")  # it defaults to the name of the file
    root["properties"]["preset"]["enum"] = list(PRESETS)
    _data_sets(root["properties"]["data"])
    for network in ("teacher", "student"):
        _models(root["properties"][network])
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "A recipe of factor-transfer", **root}


def _plain(schema: Json, definitions: Mapping[str, Json], texts: Mapping[str, str], path: str = "") -> Json:
    """A schema of pydantic without references, without ``null``, which TOML does not have, and with descriptions."""
    kinds = [kind for kind in schema.get("anyOf", []) if kind != {"type": "null"}]
    only = kinds[0] if len(kinds) == 1 else {}
    reference = {**schema, **only}.get("$ref", "").rpartition("/")[2]
    merged = {**definitions.get(reference, only), **schema}
    dropped = ("$ref", "$defs", "anyOf", "title", "description")
    found = {key: value for key, value in merged.items() if key not in dropped and (key, value) != ("default", None)}
    if len(kinds) > 1:
        found["anyOf"] = [_plain(kind, definitions, {}) for kind in kinds]
    if "properties" in found:
        prefix = f"{path}." if path else ""
        inner = found["properties"].items()
        found["properties"] = {key: _plain(one, definitions, texts, prefix + key) for key, one in inner}
    return {"description": texts[path], **found} if path in texts else found


def _settings(*functions: Callable[..., Any]) -> Json:
    """The schema of a table with the settings of some functions."""
    made = options("table", *functions).model_json_schema()
    return _plain(made, made.get("$defs", {}), meanings(functions))


def _data_sets(table: Json) -> None:
    """Add the keys that only some data sets have, and the rules that say which has which."""
    shared = list(table["properties"])
    _named(table["properties"]["name"], DATASETS)
    openers: dict[str, Callable[..., Any]] = {**DATASETS, OUTSIDE: data_set(f"package{OUTSIDE}function")}
    sets = {name: _settings(opener) for name, opener in openers.items()}
    for key in dict.fromkeys(key for one in sets.values() for key in one["properties"]):
        if key not in shared:
            variants = {name: one["properties"][key] for name, one in sets.items() if key in one["properties"]}
            table["properties"][key] = _merged(variants)
    rules: dict[str, list[str]] = {}
    for name, one in sets.items():
        keys = options("data", openers[name], open_data, base=Named).model_fields  # in the order of the code
        then = {"propertyNames": {"enum": list(keys)}, "required": ["name", *one.get("required", [])]}
        rules.setdefault(json.dumps(then), []).append(name)
    table["allOf"] = [_rule("name", names, json.loads(then)) for then, names in rules.items()]


def _merged(variants: Mapping[str, Json]) -> Json:
    """The schema of a key that several data sets have."""
    texts: dict[str, list[str]] = {}
    for name, one in variants.items():
        texts.setdefault(one["description"], []).append("your own data set" if name == OUTSIDE else name)
    kinds = [{key: value for key, value in one.items() if key != "description"} for one in variants.values()]
    if any(kind != kinds[0] for kind in kinds):
        kinds = [{key: value for key, value in kind.items() if key != "default"} for kind in kinds]
    distinct = [kind for at, kind in enumerate(kinds) if kind not in kinds[:at]]
    description = "\n".join(f"{', '.join(names)}: {text}" for text, names in texts.items())
    return {"description": description, **(distinct[0] if len(distinct) == 1 else {"anyOf": distinct})}


def _models(table: Json) -> None:
    """Add the ``args`` of each model."""
    _named(table["properties"]["model"], MODELS)
    table["properties"]["args"] = {"description": table["properties"]["args"]["description"], "type": "object"}
    rules: dict[str, list[str]] = {}
    for name, builder in MODELS.items():
        rules.setdefault(json.dumps(_settings(builder)), []).append(name)
    table["allOf"] = [
        _rule("model", names, {"properties": {"args": json.loads(args)}}) for args, names in rules.items()
    ]


def _named(key: Json, names: Iterable[str]) -> None:
    """Restrict a key to some names, and those outside the package."""
    key["anyOf"] = [{"enum": list(names)}, {"type": "string", "pattern": OUTSIDE}]


def _rule(key: str, names: list[str], then: Json) -> Json:
    """What applies to a table if a key has one of some names."""
    condition: Json = {"pattern": OUTSIDE} if names == [OUTSIDE] else {"enum": names}
    return {"if": {"properties": {key: condition}, "required": [key]}, "then": then}


def text() -> str:
    """The content of the file."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(text(), encoding="utf-8")
