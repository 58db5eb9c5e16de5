"""The lists that ``factor-transfer show`` prints.

Each list imports what it needs, so that those without networks do not wait for PyTorch.
"""

import sys

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from factor_transfer.errors import InputError, printable
from factor_transfer.settings import settings

_FIGURES = "parameters", "MACs", "channels", "top-1 %", "top-5 %"


def _table(*headings: str) -> Table:
    table = Table(box=box.MARKDOWN)
    for heading in headings:
        table.add_column(heading, justify="right" if heading in _FIGURES else "left")
    return table


def models() -> Group:
    """The built-in networks, with their costs for 10 classes and their ``args``, and the sources of external ones."""
    import torch

    from factor_transfer.models import MODELS, build_model, parameters
    from factor_transfer.models.cost import NotInitialized, layer_macs
    from factor_transfer.models.external import zoo_states

    table = _table("model", "input", "parameters", "MACs", "args")
    for name in MODELS:
        size = _usual_size(name)
        with NotInitialized():
            model = build_model(name, 10)
        cost = layer_macs(model, torch.zeros(1, 3, size, size))
        chosen = ", ".join(f"{key} = {p.default!r}" for key, p in settings(MODELS[name]).items())
        table.add_row(name, f"3 x {size} x {size}", f"{parameters(model):,}", f"{cost:,}", chosen)
    places = "\n".join(f"  {zoo}:NAME ({state})" for zoo, state in zoo_states().items())
    return Group(table, Text(f"External networks:\n{places}\n  package.module:callable, your own code"))


def recipes() -> Table:
    """The recipes in the package, with the comments at their top."""
    from factor_transfer.config.read import shipped

    table = _table("recipe", "description")
    for name, path in shipped().items():
        lines = path.read_text(encoding="utf-8").splitlines()
        header = [line.removeprefix("#").strip() for line in lines[: lines.index("")]]
        table.add_row(name, "\n".join(header), end_section=True)
    return table


def methods() -> Table:
    """The terms of methods, with the settings of ``[transfer.NAME]``."""
    from factor_transfer.methods import TERMS, configured

    table = _table("term", "from", "settings")
    for name, term in TERMS.items():
        found = {key: p for function in configured(term) for key, p in settings(function).items()}
        chosen = "\n".join(f"{key} = {p.default!r}" for key, p in found.items())
        paper = (sys.modules[term.__module__].__doc__ or "").partition("\n")[0]
        table.add_row(name, escape(paper), escape(chosen), end_section=True)
    return table


def presets() -> Table:
    """The presets that a recipe may use with ``preset = NAME``, and their settings."""
    from factor_transfer.config.presets import PRESETS, dotted

    table = _table("preset", "settings, unless the recipe sets them")
    for name, document in PRESETS.items():
        lines = [
            f"[{table_name}] {', '.join(f'{key} = {_shown(value)}' for key, value in dotted(content))}"
            for table_name, content in document.items()
        ]
        table.add_row(name, escape("\n".join(lines)), end_section=True)
    return table


def zoo() -> Group:
    """The trained networks: those in the package, and those that a command trains."""
    from factor_transfer.pipeline.weights.zoo import entries

    table = _table("name", "network", "data", "top-1 %", "top-5 %", "")
    for name, entry in entries().items():
        figures = ["" if figure is None else f"{figure:.2f}" for figure in (entry.top1, entry.top5)]
        origin = "" if entry.is_here else f"trained by: {entry.command}"
        table.add_row(*(escape(printable(cell)) for cell in (name, entry.network, entry.data, *figures, origin)))
    return Group(table, Text("In Python: factor_transfer.load_student(NAME)."))


def schema() -> str:
    """The JSON Schema of recipes, by which editors complete and check them."""
    from factor_transfer.config.keys import SCHEMA

    return SCHEMA.read_text(encoding="utf-8")


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def taps(model: str, size: int | None = None) -> Table:
    """The modules of a network that can be taps, and the shapes of their outputs for one image.

    Args:
        model: the name of a model in ``MODELS`` or of an external network.
        size: the height and width of the image in pixels; by default, the network's usual size, if it is known.

    Raises:
        InputError: the network does not exist, or does not accept images of that size.
    """
    import torch

    from factor_transfer.models import build_model
    from factor_transfer.models.external import is_external, zoo_size
    from factor_transfer.models.zoos import ZOOS
    from factor_transfer.taps.extract import shapes
    from factor_transfer.taps.stages import maps, stages

    # Not on the meta device, which external code may not support, and which imports PyTorch's compiler.
    network = build_model(model, 10)
    if is_external(model):
        size = size or zoo_size(model, network) or (224 if model.partition(":")[0] in ZOOS else 32)
    else:
        size = size or _usual_size(model)
    image = torch.zeros(1, 3, size, size, device=next((p.device for p in network.parameters()), None))
    try:
        found = shapes(network, image)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise InputError(
            f"{model} fails on an image of 3 x {size} x {size} ({error}); set another size with --size N"
        ) from error
    try:
        ends = stages(network, image)
    except InputError:  # the network has no stages, so a recipe must name its taps
        ends = []
    channels = {path: str(shape[0]) for path, shape in maps(network, image).items()}
    table = _table("tap", f"returns, for 3 x {size} x {size}", "channels", "")
    for path, shape in found.items():
        mark = "end of a stage" if path in ends else ""
        if ends and path == ends[-1]:
            mark = "end of the last stage: the default tap"
        table.add_row(
            escape(printable(path)), " x ".join(str(length) for length in shape[1:]), channels.get(path, ""), mark
        )
    return table


def _usual_size(model: str) -> int:
    """The height and width of the images that a model is usually used for, with its default settings."""
    from factor_transfer.models import MODELS

    stem = settings(MODELS[model]).get("stem")
    return 224 if stem and stem.default == "imagenet" else 32
