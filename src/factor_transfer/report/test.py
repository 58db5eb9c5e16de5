"""The results of ``test``, class by class."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from factor_transfer.errors import printable


def test_table(result: Mapping[str, Any]) -> Table:
    """The table of the results of ``factor-transfer test``: all images, then each class.

    Args:
        result: the figures, see ``metrics.measure``.
    """
    by_class: Mapping[str, Mapping[str, Any]] = result["classes"]
    names = [key for key in next(iter(by_class.values())) if key != "count"]
    table = Table(box=box.MARKDOWN)
    table.add_column("class")
    table.add_column("images", justify="right")
    for name in names:
        table.add_column(f"{name} %", justify="right")
    table.add_row("all", str(result["count"]), *[f"{result[name]:.2f}" for name in names], end_section=True)
    for label, figures in by_class.items():
        cells = ["–" if figures[name] is None else f"{figures[name]:.2f}" for name in names]
        table.add_row(escape(printable(label)), str(figures["count"]), *cells)
    return table
