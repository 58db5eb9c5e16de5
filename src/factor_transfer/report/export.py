"""What an exported file is worth, in a table."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def print_export(console: Console, record: Mapping[str, Any], path: str) -> None:
    """Student and teacher beside each other, and what was lost on the way into the file.

    Args:
        console: where to.
        record: what ``export.json`` says.
        path: of the file.
    """
    parity, teacher, ratios, own = record["parity"], record["teacher"], record["ratios"], record["costs"]
    table = Table(box=box.MARKDOWN)
    table.add_column("")
    for heading in ("student's file", "trained student", "teacher's file, float32", "smaller by"):
        table.add_column(heading, justify="right")

    def row(name: str, file: str, trained: str, key: str, show: str) -> None:
        others = "" if teacher is None else show
        ratio = "" if ratios is None or ratios.get(key) is None else f"{ratios[key]:.1f} x"
        table.add_row(name, file, trained, others, ratio)

    its = teacher or {"top1": 0.0, "bytes": 0, "parameters": 0, "macs": 0, "costs": own}
    student = record["student"]
    row("top-1 %", f"{parity['top1_file']:.2f}", f"{parity['top1_trained']:.2f}", "", f"{its['top1']:.2f}")
    row("bytes", f"{record['file']['bytes']:,}", f"{student['weights_bytes']:,}", "bytes", f"{its['bytes']:,}")
    row("parameters", "", f"{student['parameters']:,}", "parameters", f"{its['parameters']:,}")
    row("multiply-accumulates", "", f"{student['macs']:,}", "macs", f"{its['macs']:,}")
    row("p50, ms an image", f"{own['p50_ms']:.3f}", "", "latency", f"{its['costs']['p50_ms']:.3f}")
    row("p95, ms an image", f"{own['p95_ms']:.3f}", "", "", f"{its['costs']['p95_ms']:.3f}")
    peak, other = (costs["peak_bytes"] / 1e6 for costs in (own, its["costs"]))
    row("peak memory, MB", f"{peak:.2f}", "", "memory", f"{other:.2f}")
    console.print(table)
    lines = [
        f"{parity['images']:,} test images through the file by its own runtime: {parity['equal_predictions']:.2f} % of "
        f"the predictions are the trained student's, its logits differ by up to "
        f"{parity['largest_logit_difference']:.2g}. Latency on one thread.",
        path,
    ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
