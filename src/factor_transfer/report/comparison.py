"""The results of ``compare``, as a table with its interpretation."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from factor_transfer.config.recipe import ALONE
from factor_transfer.errors import printable
from factor_transfer.pipeline.artefact import LAST, WEIGHTS
from factor_transfer.report.confidence import as_estimate
from factor_transfer.report.names import name_of, the_name_of
from factor_transfer.training.evaluate import at_chance


def print_comparison(console: Console, comparison: Mapping[str, Any], test_images: int, seeds: int) -> None:
    """Print the results of ``compare``: a table, its explanation, and which differences are significant.

    Args:
        console: the console to print on.
        comparison: the content of ``comparison.json``.
        test_images: the number of test images.
        seeds: the number of seeds.
    """
    table = Table(box=box.MARKDOWN)
    table.add_column("method")
    methods = comparison["methods"]
    # A value of a swept setting is to be chosen on validation images.
    sweep = any("," in method and figures.get("validation_top1") is not None for method, figures in methods.items())
    headings = ["top-1 %", "difference", "gap closed", "cost", *(["validation %"] if sweep else [])]
    for heading in headings:
        table.add_column(heading, justify="right")
    if comparison["teacher"] is not None:
        table.add_row("teacher", f"{comparison['teacher']['top1']:.2f}", *[""] * (len(headings) - 1))
    for method, figures in methods.items():
        mean, difference = as_estimate(figures, "mean"), as_estimate(figures, "difference")
        table.add_row(
            escape(name_of(method)),
            "failed" if mean is None else f"{mean:.2f}",
            "" if difference is None else f"{difference:+.2f}",
            "" if figures["gap_closed"] is None else f"{figures['gap_closed']:.0%}",
            "" if figures["cost"] is None else f"{figures['cost']:.2f} x",
            *([f"{figures['validation_top1']:.2f}"] if sweep and figures.get("validation_top1") is not None else []),
        )
    console.print(table)
    reference = the_name_of(comparison["against"])
    over = f"mean ± 95 % interval over {seeds} seeds" if seeds > 1 else "one seed, so without intervals"
    lines = [
        f"Top-1 of the last epoch on {test_images:,} test images, {over}; difference from {reference}, seed by seed; "
        "gap closed: the share of the gap between the student alone and the teacher; cost: seconds of the student's "
        "training, relative to the student alone (without the paraphraser's)."
    ]
    if any(run.get("top1_kept") not in (None, run["top1"]) for run in comparison["runs"]):
        lines.append(
            f"{LAST} has the weights of the last epoch (top1_last in comparison.json); {WEIGHTS}, which is delivered, "
            "has those of the epoch that validation chose (top1_kept)."
        )
    if sweep:
        lines.append(
            "validation %: mean top-1 of the delivered weights on the validation images. Choose a value by it; a value "
            "that is chosen on test images looks better than it is."
        )
    known = [figures for name, figures in methods.items() if name != ALONE and figures["mean"] is not None]
    if comparison["teacher"] is not None and known and all(figures["gap_closed"] is None for figures in known):
        lines.append("There is no gap to close: the teacher is not better than the student alone.")
    lines += _verdicts(methods, reference)
    classes = comparison["classes"]
    guessing = [
        run for run in comparison["runs"] if run["top1"] is not None and at_chance(run["top1"], classes, test_images)
    ]
    for method in dict.fromkeys(run["method"] for run in guessing):
        their_seeds = ", ".join(str(run["seed"]) for run in guessing if run["method"] == method)
        lines.append(
            f"At chance, {100 / classes:.1f} %: {name_of(method)}, seed {their_seeds}. It has learned nothing."
        )
    for run in comparison["runs"]:
        if "error" in run:
            lines.append(f"Failed: {run['method']}, seed {run['seed']}: {run['error'].splitlines()[0]}")
    for line in lines:
        console.print(printable(line), highlight=False, markup=False, soft_wrap=True)


def _verdicts(methods: Mapping[str, Mapping[str, Any]], reference: str) -> list[str]:
    """The sentences that state which differences are significant."""
    compared = {name: figures for name, figures in methods.items() if figures["difference"] is not None}
    kinds: dict[str, list[str]] = {"better": [], "worse": [], "not significant": [], "one seed": []}
    for name, figures in compared.items():
        sign = "better" if figures["difference"] > 0 else "worse"
        kind = sign if figures["significant"] else "not significant"
        kinds[kind if figures["difference_interval"] is not None else "one seed"].append(name_of(name))
    lines = [
        f"Significantly {kind} than {reference}: {_listed(kinds[kind])}." for kind in ("better", "worse") if kinds[kind]
    ]
    if kinds["not significant"]:
        lines.append(f"Not significant with these seeds: {_listed(kinds['not significant'])}.")
    if kinds["one seed"]:
        lines.append(f"One seed gives no interval, so significance is unknown: {_listed(kinds['one seed'])}.")
    if len(compared) > len(kinds["one seed"]) + 1:
        lines.append(
            f"Significance is corrected for {len(compared)} comparisons (Holm's method); the intervals are not."
        )
    return lines


def _listed(names: Sequence[str]) -> str:
    """Names in a sentence; those of a sweep have commas themselves."""
    return ("; " if any("," in name for name in names) else ", ").join(names)
