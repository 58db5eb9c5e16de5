"""The parts of the pages that are made from the code, so that they cannot differ from it.

A page says where such a part goes by a line ``<!-- made: NAME ARGUMENT -->``; ``PARTS`` has the names.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from meanings import SOURCES, meanings, summary
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from factor_transfer.cli.main import app as commands
from factor_transfer.config.presets import PRESETS, dotted
from factor_transfer.config.read import toml_value
from factor_transfer.config.recipe import Recipe, recipe_type
from factor_transfer.config.sections import Training
from factor_transfer.data import DATASETS
from factor_transfer.methods import TERMS
from factor_transfer.models import MODELS
from factor_transfer.settings import options, table_type
from factor_transfer.training.optim import Optimization

DOCS = Path(__file__).parent
ROOT = DOCS.parent

_PLACE = re.compile(r"^<!-- made: (\S+) ?(.*?) -->$", re.MULTILINE)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def fill(app: Any, name: str, source: list[str]) -> None:
    """Put what is made from the code into a page, and mend its links to what is no page of the site."""
    page = DOCS / f"{name}.md"
    text = _relinked(source[0], page.parent, page.parent)
    source[0] = _PLACE.sub(lambda found: PARTS[found[1]](found[2], page.parent), text)


def outdated(app: Any, env: Any, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    """The pages that have such parts, which are read in each build, since the code may have changed."""
    names = env.found_docs - added - changed
    return [name for name in names if _PLACE.search(Path(env.doc2path(name)).read_text(encoding="utf-8"))]


# --- The command line


def command_line(_: str) -> str:
    """Every command, with its arguments and options."""
    group: Any = typer.main.get_command(commands)
    context = typer.Context(group, info_name="factor-transfer")
    return "\n".join(_command(name, group.get_command(context, name), context) for name in group.list_commands(context))


def _argument(parameter: Any) -> str:
    """An argument as a usage line shows it."""
    name = parameter.metavar if parameter.required else f"[{parameter.metavar}]"
    return name + "..." * (parameter.nargs != 1)


def _command(name: str, command: Any, parent: typer.Context) -> str:
    context = typer.Context(command, info_name=name, parent=parent)
    # What every command has is said once, above all of them.
    parameters = [one for one in command.get_params(context) if one.name not in ("debug", "help")]
    arguments = [_argument(one) for one in parameters if one.param_type_name == "argument"]
    rows = []
    for parameter in parameters:
        label, meaning = parameter.get_help_record(context)
        label = _argument(parameter) if parameter.param_type_name == "argument" else label
        rows.append((f"`{label.strip()}`", meaning.removesuffix("[required]").strip().replace("<", "&lt;")))
    usage = " ".join(["factor-transfer", name, *arguments, *(["[OPTIONS]"] if len(rows) > len(arguments) else [])])
    return f"## `{name}`\n\n{command.help}\n\n    {usage}\n\n{_table(['', ''], rows)}"


# --- Settings


def term_settings(name: str) -> str:
    """The settings of ``[transfer.NAME]``, and the paper."""
    sources = SOURCES[f"transfer.{name}"]
    fields = options(name, *sources).model_fields
    paper = (sys.modules[TERMS[name].__module__].__doc__ or "").strip().partition("\n\n")[0].replace("\n", " ")
    return f"*{paper}*\n\n{_settings(fields, sources)}"


def recipe_top(_: str) -> str:
    """The keys of a recipe that are in no table."""
    fields = {key: field for key, field in Recipe.model_fields.items() if not _is_table(field)}
    fields["name"] = FieldInfo(annotation=str, default=None)  # ``read_recipe`` gives it that of the file
    return _settings(fields, [Recipe])


def recipe_table(name: str) -> str:
    """The keys of one of a recipe's tables, less those of other parts: of all stages, of the teacher, of a term."""
    if name == "student":
        fields = {key: field for key, field in _fields(name).items() if key not in _fields("teacher")}
    elif name == "transfer":
        fields = {key: field for key, field in _fields(name).items() if key.partition(".")[0] not in TERMS}
    else:
        shared = {} if name in ("data", "augment", "cache", "checkpoint") else _shared()
        fields = {key: field for key, field in _fields(name).items() if key not in shared or field.is_required()}
    return _settings(fields, SOURCES[name])


def recipe_stages(_: str) -> str:
    """The keys that all stages share."""
    return _settings(_shared(), [Training, Optimization])


def data_sets(_: str) -> str:
    """The keys of ``[data]`` that some data sets have."""
    parts = []
    for name, opener in DATASETS.items():
        fields = options(name, opener).model_fields
        parts.append(f"### `{name}`\n\n{summary(opener)}\n\n{_settings(fields, [opener])}")
    return "\n".join(parts)


def models(_: str) -> str:
    """The networks, with what ``args`` may say of them."""
    families: dict[tuple[str, ...], list[str]] = {}
    for name, builder in MODELS.items():
        fields = options(name, builder).model_fields
        said = tuple(f"`{key} = {_toml(field.default)}`: {_type(field)}" for key, field in fields.items())
        families.setdefault(said, []).append(name)
    rows = [(", ".join(f"`{name}`" for name in names), "; ".join(said)) for said, names in families.items()]
    return _table(["networks", "`args`"], rows)


def presets(_: str) -> str:
    """The settings of each preset."""
    rows = []
    for name, document in PRESETS.items():
        lines = [
            f"`[{table}]` {', '.join(f'`{key} = {_toml(value)}`' for key, value in dotted(content))}"
            for table, content in document.items()
        ]
        rows.append((f"`{name}`", "<br>".join(lines)))
    return _table(["preset", "settings, unless the recipe sets them"], rows)


def file(path: str, place: Path) -> str:
    """A page that lies elsewhere in the repository, with its links as they are from ``place``."""
    target = ROOT / path
    return _relinked(target.read_text(encoding="utf-8"), target.parent, place)


def _of(part: Callable[[str], str]) -> Callable[[str, Path], str]:
    """A part that is the same on every page."""
    return lambda argument, _: part(argument)


PARTS: Mapping[str, Callable[[str, Path], str]] = {
    "command-line": _of(command_line),
    "term": _of(term_settings),
    "recipe": _of(recipe_top),
    "recipe-table": _of(recipe_table),
    "recipe-stages": _of(recipe_stages),
    "data-sets": _of(data_sets),
    "models": _of(models),
    "presets": _of(presets),
    "file": file,
}


def _fields(table: str) -> dict[str, FieldInfo]:
    kind = table_type(recipe_type({}).model_fields[table].annotation)
    assert kind is not None
    found: dict[str, FieldInfo] = {}
    for key, field in kind.model_fields.items():
        inner = table_type(field.annotation)
        # A table in a table, such as `every` of [checkpoint], is written as dotted keys; `args` has its own table.
        nested = {f"{key}.{name}": below for name, below in inner.model_fields.items()} if inner else {}
        found |= nested or {key: field}
    return found


def _shared() -> dict[str, FieldInfo]:
    stages = [_fields(name) for name in ("teacher", "paraphraser", "student")]
    return {key: field for key, field in stages[0].items() if all(key in stage for stage in stages)}


def _is_table(field: FieldInfo) -> bool:
    return table_type(field.annotation) is not None


def _settings(fields: Mapping[str, FieldInfo], sources: Iterable[Any]) -> str:
    texts = meanings(sources)
    rows = []
    for key, field in fields.items():
        table = key.rpartition(".")[0]
        required = f"required, if there is `{table}`" if table else "required"
        default = required if field.is_required() else _default(field)
        rows.append((f"`{key}`", _type(field), default, texts.get(key) or texts[key.rpartition(".")[2]]))
    return _table(["key", "value", "default", ""], rows) if rows else "It has no settings.\n"


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    return "" if value is None else f"`{_toml(value)}`"


def _toml(value: Any) -> str:
    return "{}" if isinstance(value, BaseModel) else toml_value(value)


def _type(field: FieldInfo) -> str:
    return _said(field.annotation, field.metadata)


def _said(kind: Any, bounds: Iterable[Any] = ()) -> str:
    """A type in words, as TOML has it."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _said(inner[0], inner[1:])
    if origin in (Union, UnionType):
        return " or ".join(_said(one) for one in inner if one is not NoneType)
    if origin is Literal:
        return " or ".join(f"`{_toml(one)}`" for one in inner)
    if origin is not None:
        return f"list of {_said(inner[0]).replace('number', 'numbers', 1).replace('text', 'texts', 1)}"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "table"
    names = {bool: "`true` or `false`", int: "whole number", float: "number", str: "text"}
    limits = [f"{word} {_limit(getattr(one, key))}" for one in bounds for key, word in _BOUNDS if hasattr(one, key)]
    return f"{names[kind]} {' and '.join(limits)}".strip()


_BOUNDS = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))


def _limit(value: float) -> str:
    return "2⁶³" if value == 2**63 else f"{value:g}"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    titles = list(head)
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in lines) + "\n"


# --- Links


def _relinked(text: str, home: Path, place: Path) -> str:
    """Text that was written for one folder, with its links as they are from another.

    Args:
        text: Markdown.
        home: the folder that its links start from.
        place: the folder of the page that it becomes.
    """

    def mended(found: re.Match[str]) -> str:
        image, label, target, anchor = found[1], found[2], found[3], found[4] or ""
        path = (home / target.replace("%2B", "+")).resolve()
        if re.match(r"[a-z]+:", target) or not path.exists():
            return found[0]  # of the internet; or wrong, which Sphinx says
        if path.is_dir():
            path = path / "README.md"
            if not path.exists():
                return label
        path = PAGES.get(path.relative_to(ROOT).as_posix(), path)
        return f"{image}[{label}]({os.path.relpath(path, place)}{anchor})"

    return _LINK.sub(mended, text)


# Files of the repository that are pages of the site.
PAGES = {
    "README.md": DOCS / "index.md",
    "benchmarks/README.md": DOCS / "studies" / "benchmarks.md",
    **{
        f"studies/{name}/README.md": DOCS / "studies" / f"{name.replace('_', '-')}.md"
        for name in ("cifar10", "digits", "fashion_mnist", "gpu", "unlabelled")
    },
    "CONTRIBUTING.md": DOCS / "contributing.md",
    "CHANGELOG.md": DOCS / "changelog.md",
}
