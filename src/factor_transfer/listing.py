"""What there is to choose from: what ``factor-transfer show`` prints."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from rich import box
from rich.markup import escape
from rich.table import Table

from factor_transfer.anatomy import stages
from factor_transfer.errors import choose
from factor_transfer.models import MODELS, build_model, macs, parameters
from factor_transfer.options import settings
from factor_transfer.presets import PRESETS
from factor_transfer.recipe_file import shipped
from factor_transfer.taps import shapes


def _table(*headings: str) -> Table:
    table = Table(box=box.MARKDOWN)
    for heading in headings:
        table.add_column(heading, justify="right" if heading in ("parameters", "MACs") else "left")
    return table


def models() -> Table:
    """The networks, for 10 classes: what they cost, and the settings that ``args`` may have in a recipe."""
    table = _table("model", "input", "parameters", "MACs", "args")
    for name in MODELS:
        size = _usual_size(name)
        with torch.device("meta"):  # shapes alone: nothing is allocated or computed
            model = build_model(name, 10)
            cost = macs(model, torch.zeros(1, 3, size, size))
        chosen = ", ".join(f"{key} = {p.default!r}" for key, p in settings(MODELS[name]).items())
        table.add_row(name, f"3 x {size} x {size}", f"{parameters(model):,}", f"{cost:,}", chosen)
    return table


def recipes() -> Table:
    """The recipes that come with the package, with what their first lines say."""
    table = _table("recipe", "what its first lines say")
    for name, path in shipped().items():
        lines = path.read_text(encoding="utf-8").splitlines()
        header = [line.removeprefix("#").strip() for line in lines[: lines.index("")]]
        table.add_row(name, "\n".join(header), end_section=True)
    return table


def presets() -> Table:
    """Whose settings a recipe may take with ``preset = NAME``, and what they are."""
    table = _table("preset", "settings, where the recipe says nothing")
    for name, document in PRESETS.items():
        lines = [f"[{table_name}] {', '.join(_said(content))}" for table_name, content in document.items()]
        table.add_row(name, escape("\n".join(lines)), end_section=True)
    return table


def _said(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _said(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}"


def taps(model: str) -> Table:
    """The modules of a network that can be taps, and what they return for one image."""
    size = _usual_size(choose("model", model, MODELS))
    with torch.device("meta"):
        network, image = build_model(model, 10), torch.zeros(1, 3, size, size)
        found, ends = shapes(network, image), stages(network, image)
    table = _table("tap", f"returns, for 3 x {size} x {size}", "")
    for path, shape in found.items():
        mark = "end of a stage" if path in ends else ""
        if path == ends[-1]:
            mark = "end of the last stage: taken where a recipe names no tap"
        table.add_row(path, " x ".join(str(length) for length in shape[1:]), mark)
    return table


def _usual_size(model: str) -> int:
    """Height and width of the images that a model is made for, as it is built by default."""
    stem = settings(MODELS[model]).get("stem")
    return 224 if stem and stem.default == "imagenet" else 32
