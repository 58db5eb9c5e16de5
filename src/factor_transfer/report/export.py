"""The table that compares an exported file with the trained student and the teacher."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def print_export(console: Console, record: Mapping[str, Any], path: str) -> None:
    """Print the accuracy and the costs of an exported file beside those of the trained student and the teacher.

    Args:
        console: the console to print on.
        record: the content of ``export.json``.
        path: the path of the file.
    """
    parity, teacher, ratios, costs = record["parity"], record["teacher"], record["ratios"], record["costs"]
    table = Table(box=box.MARKDOWN)
    table.add_column("")
    for heading in ("student's file", "trained student", "teacher's file, float32", "smaller by"):
        table.add_column(heading, justify="right")

    def row(name: str, file: str, trained: str, key: str, reference: str) -> None:
        teacher_cell = "" if teacher is None else reference
        ratio = "" if ratios is None or ratios.get(key) is None else f"{ratios[key]:.1f} x"
        table.add_row(name, file, trained, teacher_cell, ratio)

    # Without a teacher, its cells are computed from placeholders and left empty.
    large = teacher or {"top1": None, "bytes": 0, "parameters": 0, "macs": 0, "costs": costs}
    student = record["student"]
    top1 = "" if large["top1"] is None else f"{large['top1']:.2f}"
    row("top-1 %", f"{parity['top1_file']:.2f}", f"{parity['top1_trained']:.2f}", "", top1)
    row("bytes", f"{record['file']['bytes']:,}", f"{student['weights_bytes']:,}", "bytes", f"{large['bytes']:,}")
    row("parameters", "", f"{student['parameters']:,}", "parameters", f"{large['parameters']:,}")
    row("multiply-accumulates", "", f"{student['macs']:,}", "macs", f"{large['macs']:,}")
    row("p50, ms per image", f"{costs['p50_ms']:.3f}", "", "latency", f"{large['costs']['p50_ms']:.3f}")
    row("p95, ms per image", f"{costs['p95_ms']:.3f}", "", "", f"{large['costs']['p95_ms']:.3f}")
    peak, teacher_peak = (each["peak_bytes"] / 1e6 for each in (costs, large["costs"]))
    row("peak memory, MB", f"{peak:.2f}", "", "memory", f"{teacher_peak:.2f}")
    console.print(table)
    lines = [
        f"{parity['images']:,} test images were run through the file by its own runtime: "
        f"{parity['equal_predictions']:.2f} % of the predictions equal those of the trained student, and the logits "
        f"differ by up to {parity['largest_logit_difference']:.2g}. Latency is measured on one thread.",
        path,
    ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
