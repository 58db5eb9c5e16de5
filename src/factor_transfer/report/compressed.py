"""The table that ``compress`` prints at its end."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from factor_transfer.report.names import name_of


def print_compressed(
    console: Console, summary: Mapping[str, Any], export: Mapping[str, Any] | None, file: Path | None, test_images: int
) -> None:
    """Print teacher, student alone, student and the exported file in one table.

    Args:
        console: the console to print on.
        summary: the content of ``summary.json``.
        export: the content of ``export.json``, if there is a file.
        file: the exported file, if there is one.
        test_images: the number of test images.
    """
    table = Table(box=box.MARKDOWN)
    table.add_column("")
    for heading in ("top-1 %", "size, MB", "parameters", *(["ms per image"] if export is not None else [])):
        table.add_column(heading, justify="right")
    names = {"teacher": "teacher", "baseline": "student alone", "student": f"student, {name_of(summary['method'])}"}
    latency = {}
    if export is not None and export.get("teacher"):
        latency["teacher"] = f"{export['teacher']['costs']['p50_ms']:.2f}"
    for key, name in names.items():
        row = summary[key]
        cells = (f"{row['top1']:.2f}", f"{row['bytes'] / 1e6:.2f}", f"{row['parameters']:,}")
        table.add_row(name, *cells, *([latency.get(key, "")] if export is not None else []))
    lines = [f"Top-1 on {test_images:,} test images."]
    if export is not None and file is not None:
        table.add_row(
            f"{file.name}, {export['precision']}",
            f"{export['parity']['top1_file']:.2f}",
            f"{export['file']['bytes'] / 1e6:.2f}",
            f"{export['student']['parameters']:,}",
            f"{export['costs']['p50_ms']:.2f}",
        )
        lines[0] += (
            f" Sizes are of the weights and of the exported file. Times are of {export['format']} on one thread of "
            f"this machine{', for the teacher as a float32 file' if latency else ''}."
        )
    console.print(table)
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
