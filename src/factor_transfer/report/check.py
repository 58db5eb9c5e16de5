"""The results of ``check``, on one screen."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from factor_transfer.errors import printable
from factor_transfer.pipeline.stages.sizes import Size, size_line
from factor_transfer.report.names import name_of
from factor_transfer.training.log import duration


def print_check(console: Console, found: Mapping[str, Any]) -> None:
    """Print the networks, taps, terms, stages and warnings that ``check`` reports.

    Args:
        console: the console to print on.
        found: the results of the command.
    """
    networks = _table("", "parameters", "MACs", "file")
    for name, figures in found["networks"].items():
        size = f"{figures['bytes'] / 1000:,.0f} kB"
        networks.add_row(name, f"{figures['parameters']:,}", f"{figures['macs']:,}", size)
    console.print(networks)
    for line in _lines(found):
        console.print(printable(line), highlight=False, markup=False, soft_wrap=True)
    if found["terms"]:
        terms = _table("part of the loss", "value", "weight", "weighted", "of the loss", "of the gradient")
        for name, part in found["terms"].items():
            terms.add_row(
                "cross-entropy" if name == "ce" else name_of(name),
                f"{part['value']:.4g}",
                f"{part['weight']:g}",
                f"{part['weighted']:.4g}",
                f"{part['share_of_loss']:.1%}",
                f"{part['share_of_gradient']:.1%}",
            )
        console.print(terms)
    stages = _table("stage", "time", "images/s", "memory")
    for name, budget in found["stages"].items():
        memory = f"{budget['memory_mb']:,.0f} MB"
        stages.add_row(name, duration(budget["seconds"]), f"{budget['images_per_s']:,.0f}", memory)
    console.print(stages)
    for warning in found["warnings"]:
        console.print(printable(f"Warning: {warning}"), style="yellow", highlight=False, markup=False, soft_wrap=True)


def _teacher_line(teacher: Mapping[str, Any]) -> str:
    if teacher["top1"] is None:
        usable = ", ".join(teacher["methods"])
        return f"teacher  {teacher['state']}, without a classifier; these terms can be used with it: {usable}"
    recorded = "" if teacher["top1_recorded"] is None else f"; {teacher['top1_recorded']:.2f} % in its record"
    return (
        f"teacher  {teacher['state']}, top-1 {teacher['top1']:.2f} % on {teacher['images']} {teacher['split']} "
        f"images (chance {teacher['chance']:.1f} %){recorded}"
    )


def _lines(found: Mapping[str, Any]) -> list[str]:
    teacher = found["teacher"]
    lines = [_teacher_line(teacher)]
    if unlabelled := found.get("unlabelled"):
        confidence = unlabelled["confidence"]
        sure = f"; the teacher's mean confidence is {confidence[0]:.0%} and {confidence[1]:.0%}" if confidence else ""
        lines.append(
            f"student  each batch has {unlabelled['labelled_per_batch']} labelled and "
            f"{unlabelled['unlabelled_per_batch']} unlabelled images, {unlabelled['steps']:,} steps per epoch{sure}"
        )
    for name, taps in found["taps"].items():
        shapes = (f"{tap} ({' x '.join(str(length) for length in shape)})" for tap, shape in taps.items())
        lines.append(f"{name}  tap {', '.join(shapes)}")
    sizes = {name: Size(**size) for name, size in found["sizes"].items()}
    if sizes.keys() - {"teacher", "student"}:
        lines.append(size_line(sizes))
    if found["paraphraser"]:
        for tap, share in found["paraphraser"]["unexplained_variance"].items():
            if found["paraphraser"]["state"] == "finished":
                lines.append(
                    f"paraphraser of {tap}  trained; it rebuilds the feature but for {share:.1%} of its variance"
                )
            else:
                lines.append(f"paraphraser of {tap}  not trained yet, so it does not rebuild the feature")
    return lines


def _table(*headings: str) -> Table:
    table = Table(box=box.MARKDOWN)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left")
    return table
