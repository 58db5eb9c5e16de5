"""The tables of the page with formatted cells, and the sentence above them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from factor_transfer.config.recipe import ALONE
from factor_transfer.pipeline.records import Summary
from factor_transfer.report.confidence import Estimate
from factor_transfer.report.html.work_dir import Comparison, Exported, MethodFigures
from factor_transfer.report.names import name_of, the_name_of

ROLES = {"teacher": "teacher", "baseline": "student alone", "student": "student"}

_TOP = "top-1\u00a0%", "top-5\u00a0%"  # no line break before the percent sign


class Table(NamedTuple):
    """A table.

    Attributes:
        headings: the headings of the columns. The first column has names, all others have figures.
        rows: the cells of each row; empty cells were not measured.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


def networks_table(figures: Mapping[str, Mapping[str, Any]], method: str) -> Table:
    """The table of teacher, student alone and student, with their accuracies and costs.

    Args:
        figures: the figures of the networks by role, see ``network_figures``.
        method: the method of the student.
    """
    teacher, alone = figures.get("teacher"), figures.get("baseline")
    headings = ["", *_TOP]
    headings += ["against the student alone"] * (alone is not None) + ["against the teacher"] * (teacher is not None)
    rows = []
    for role, network in figures.items():
        name = f"student, {name_of(method)}" if role == "student" and method != ALONE else ROLES[role]
        row = [name, f"{network['top1']:.2f}", f"{network['top5']:.2f}"]
        for column, other in (("baseline", alone), ("teacher", teacher)):
            if other is not None:
                shown = role != column and (column, role) != ("baseline", "teacher")
                row.append(signed(network["top1"] - other["top1"]) if shown else "")
        rows.append([*row, *_sizes(network, None if role == "teacher" else teacher)])
    return Table([*headings, "parameters", "multiply-accumulates", "weights"], rows)


def costs_table(figures: Mapping[str, Mapping[str, Any]]) -> Table:
    """The table of the costs of teacher and student, which do not depend on the student's method."""
    teacher = figures.get("teacher")
    rows = [
        [role, *_sizes(figures[role], None if role == "teacher" else teacher)]
        for role in ("teacher", "student")
        if role in figures
    ]
    return Table(["", "parameters", "multiply-accumulates", "weights"], rows)


def _sizes(network: Mapping[str, Any], reference: Mapping[str, Any] | None) -> list[str]:
    """The costs of a network, with the factors by which they are smaller than those of another."""
    cells = [f"{network['parameters']:,}", f"{network['macs']:,}", size(network["bytes"])]
    if reference is None:
        return cells
    ratios = [reference[key] / network[key] if network[key] else 0 for key in ("parameters", "macs", "bytes")]
    return [f"{cell} (÷ {ratio:.1f})" if ratio > 1.05 else cell for cell, ratio in zip(cells, ratios, strict=True)]


def methods_table(comparison: Comparison) -> Table:
    """The table of the methods of a comparison."""
    reference = the_name_of(comparison.against)
    teacher, rows = comparison.teacher, []
    if teacher is not None:
        rows.append(["teacher", f"{teacher.top1:.2f}", f"{teacher.top5:.2f}", "", "", "", "", ""])
    for name, one in comparison.methods.items():
        mean, difference, top5 = mean_of(one), difference_of(one), comparison.top5(name)
        rows.append(
            [
                name_of(name),
                "failed" if mean is None else f"{mean:.2f}",
                "" if top5 is None else f"{top5:.2f}",
                "" if difference is None else minus(f"{difference:+.2f}"),
                "" if one.p_holm is None else p_value(one.p_holm).removeprefix("= "),
                "" if one.gap_closed is None else minus(f"{one.gap_closed:.0%}"),
                "" if one.cost is None else f"{one.cost:.2f} ×",
                f"{comparison.count(name)}" + (f", {one.failed} failed" if one.failed else ""),
            ]
        )
    headings = [
        "method",
        "top-1\u00a0%",
        "top-5\u00a0%",
        f"against {reference}",
        "p",
        "gap closed",
        "training time",
        "seeds",
    ]
    return Table(headings, rows)


def pairs_table(comparison: Comparison) -> Table:
    """The table of the differences between any two methods: the row's top-1 minus the column's."""
    names = [name for name in comparison.methods if name in comparison.pairwise]
    rows = []
    for row in names:
        cells = []
        for column in names:
            one = comparison.pairwise[row].get(column)
            known = one is not None and one.difference is not None
            cells.append(minus(f"{Estimate(one.difference, one.interval):+.2f}") if known else "")  # type: ignore[union-attr,arg-type]
        rows.append([name_of(row), *cells])
    return Table(["", *(name_of(name) for name in names)], rows)


def exports_table(exports: Mapping[str, Exported]) -> Table:
    """The table of the student's exported files."""
    rows = [
        [
            name,
            f"{one.format}, {one.precision}",
            size(one.file.bytes),
            f"{one.parity.top1_file:.2f}",
            f"{one.parity.equal_predictions:.2f}",
            f"{one.costs.p50_ms:.3f}",
            "" if one.costs.p95_ms is None else f"{one.costs.p95_ms:.3f}",
        ]
        for name, one in exports.items()
    ]
    headings = [
        "file",
        "format",
        "size",
        "top-1\u00a0%",
        "equal predictions\u00a0%",
        "p50, ms per image",
        "p95, ms per image",
    ]
    return Table(headings, rows)


def run_sentence(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """The result of a run, in a sentence."""
    student = figures["student"]
    against = [
        f"{points(student['top1'] - figures[role]['top1'])} the {words}"
        for role, words in (("baseline", "student trained alone"), ("teacher", "teacher"))
        if role in figures
    ]
    text = f"The student reaches {student['top1']:.1f}\u00a0% top-1" + (f", {' and '.join(against)}" if against else "")
    if "teacher" in figures and (ratio := figures["teacher"]["parameters"] / max(student["parameters"], 1)) > 1.05:
        text += f", with {ratio:.1f} times fewer parameters"
    return f"{text}."


def comparison_sentence(comparison: Comparison) -> str:
    """The result of a comparison, in a few sentences."""
    best = comparison.best
    one, count = comparison.methods[best], comparison.count(best)
    mean, teacher = mean_of(one), comparison.teacher
    if mean is None:
        reached = "" if teacher is None else f", which reaches {teacher.top1:.1f}\u00a0% top-1"
        return f"All trainings failed except the teacher's{reached}."
    seeds = "one seed" if count == 1 else f"{count} seeds"
    who = "The student alone" if best == ALONE else f"A student trained by {name_of(best)}"
    text = f"{who} reaches {mean.mean:.1f}\u00a0% top-1 over {seeds}"
    difference = difference_of(one)
    if difference is None:
        return f"{text}." if teacher is None else f"{text}; the teacher reaches {teacher.top1:.1f} %."
    half = "" if difference.interval is None else f" (±\u00a0{difference.interval:.1f})"
    reference = "the student trained alone" if comparison.against == ALONE else name_of(comparison.against)
    text += f", {points(difference.mean, half)} {reference}"
    if difference.interval is None:
        return f"{text}. One seed is not enough to tell whether the difference is due to chance."
    if one.p_holm is None:
        return f"{text}."
    verdict = "is" if one.significant else "is not"
    tested = sum(figures.p_holm is not None for figures in comparison.methods.values())
    corrected = f", corrected for {tested} comparisons" if tested > 1 else ""
    p = p_value(one.p_holm).replace(" ", "\u00a0")
    return f"{text}. The difference {verdict} statistically significant (p\u00a0{p}{corrected})."


def points(difference: float, interval: str = "") -> str:
    """A difference in words, such as ``"2.3 points more than"``.

    Args:
        difference: the difference, in percentage points.
        interval: text that follows the figure.
    """
    if round(abs(difference), 1) == 0 and not interval:
        return "as much as"
    return f"{abs(difference):.1f}\u00a0points{interval} {'more' if difference >= 0 else 'less'} than"


def signed(value: float) -> str:
    """A difference with its sign and two decimals."""
    return minus(f"{value:+.2f}")


def minus(text: str) -> str:
    """A formatted number with a minus sign, which is as wide as a plus sign, instead of a hyphen."""
    return text.replace("-", "−")


def size(count: int) -> str:
    """The size of a file in kB or MB."""
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


def p_value(value: float) -> str:
    """A p-value with its relation sign, such as ``"= 0.012"``; values that would be rounded to 0 are ``"< 0.001"``."""
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def mean_of(figures: MethodFigures) -> Estimate | None:
    """The mean top-1 of a method; ``None`` if all its trainings failed."""
    return None if figures.mean is None else Estimate(figures.mean, figures.interval)


def difference_of(figures: MethodFigures) -> Estimate | None:
    """The difference of a method's top-1 from that of the reference method; ``None`` if there is none."""
    return None if figures.difference is None else Estimate(figures.difference, figures.difference_interval)


def summary_figures(summary: Summary) -> dict[str, dict[str, Any]]:
    """The figures of the networks of a run, by role."""
    by_role = {role: getattr(summary, role) for role in ROLES}
    return {role: figures.model_dump() for role, figures in by_role.items() if figures is not None}
