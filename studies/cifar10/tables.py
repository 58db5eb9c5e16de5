"""Tables of the results, in Markdown."""

from collections.abc import Mapping, Sequence

from factor_transfer.report.confidence import Estimate, as_estimate, estimate
from factor_transfer.training.log import duration
from plan import Variant
from results import Results, Run, label, paired, tops

_RIVALS = ("kd", "fitnets", "at", "at+kd")


def headline(result: Results) -> str:
    """The figures of a recipe, in a line."""
    reached = {label(name): figures for name, figures in result.summary().items() if figures["mean"] is not None}
    said = [f"{name} {figures['mean']:.2f}" for name, figures in reached.items()]
    seeds = "/".join(map(str, sorted({figures["seeds"] for figures in reached.values()})))
    teacher = f"teacher {result.teacher['test']['top1']:.2f}"
    return f"{'; '.join([teacher, *said])} (top-1 % on the test images, mean of {seeds} seeds)"


def costs(result: Results) -> str:
    """What was trained for how long, on what, in a line."""
    made = result.teacher["teacher"]
    parts = [f"{what} {duration(seconds)}" for what, seconds in result.seconds().items() if seconds]
    return f"{', '.join(parts)} of training (h:mm:ss); torch {made['versions']['torch']}, {made['machine']}"


def _methods(result: Results) -> str:
    taught = result.teacher["test"]
    lines = [["teacher", f"{taught['top1']:.2f}", f"{taught['top5']:.2f}", "", "", ""]]
    for name, figures in result.summary().items():
        if not figures["seeds"] and not figures["failed"]:
            lines.append([label(name), "not run yet", "", "", "", ""])
            continue
        own, difference = as_estimate(figures, "mean"), as_estimate(figures, "difference")
        closed = figures["gap_closed"]
        lines.append(
            [
                label(name),
                _cell(own),
                _cell(figures["top5"]),
                _signed(difference),
                "" if closed is None else f"{closed:.0%}",
                _seeds(figures["seeds"], figures["failed"]),
            ]
        )
    note = (
        "10,000 test images, after the last epoch; mean ± 95 % interval over the seeds, bold where it leaves zero out."
    )
    return _table(["", "top-1 %", "top-5 %", "difference", "gap closed", "seeds"], lines, note)


def _differences(result: Results) -> str:
    rivals = [method for method in _RIVALS if method in result.pair.methods]
    tested = {name: tops(runs) for name, runs in result.tested().items()}
    lines = [
        [label(name), *(_signed(paired(tested[name], tested[rival])) for rival in rivals)]
        for name in tested
        if name.startswith("factor")
    ]
    note = "Top-1 points on the test images, seed by seed; bold where the 95 % interval leaves zero out."
    return _table(["", *(f"against {label(rival)}" for rival in rivals)], lines, note)


def _variants(result: Results) -> str:
    base = tops(result.runs(), "validation")
    lines = [["the recipe", _mean(base), "", _error(result.paraphraser()), _seeds(len(base), 0)]]
    lines += [_variant(result, variant, base) for variant in result.pair.variants]
    head = ["", "validation top-1 %", "difference", "paraphraser's relative error", "seeds"]
    return _table(head, lines, "Factor Transfer on validation images; mean ± 95 % interval over the seeds.")


def _variant(result: Results, variant: Variant, base: Mapping[int, float]) -> list[str]:
    name = variant.name if "=" in variant.name else f"{variant.group}: {variant.name}"
    runs = result.runs("factor", variant)
    own = tops(runs, "validation")
    if not runs:
        return [name, "not run yet", "", "", ""]
    seeds = _seeds(len(own), len(runs) - len(own))
    return [name, _mean(own), _signed(paired(own, base)), _error(result.paraphraser(variant)), seeds]


def _cost(result: Results) -> str:
    return f"{costs(result)}. Each training as it was measured, side by side with others.\n"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]], note: str) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", note, ""])


def _seeds(good: int, failed: int) -> str:
    return f"{good} ({failed} diverged)" if failed else str(good)


def _cell(value: Estimate | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _mean(values: Mapping[int, float]) -> str:
    return f"{estimate(list(values.values())):.2f}" if values else "diverged"


def _error(paraphraser: Run | None) -> str:
    return "" if paraphraser is None else f"{paraphraser['validation']['relative_error']:.3f}"


def _signed(difference: Estimate | None) -> str:
    if difference is None:
        return ""
    return f"**{difference:+.2f}**" if difference.significant else f"{difference:+.2f}"


TABLES = {"methods": _methods, "differences": _differences, "variants": _variants, "cost": _cost}
