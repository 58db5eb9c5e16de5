"""The picture of the study: how far each method comes from the student alone to a student with all labels."""

from collections.abc import Mapping, Sequence
from typing import Any

from cases import METHODS, Case
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from factor_transfer.report.confidence import as_estimate
from factor_transfer.report.names import name_of
from factor_transfer.report.plot import picture

_IMAGES = {
    False: ("o", "C1", "labelled images"),
    True: ("s", "C0", "all images"),
}  # by whether unlabelled ones are used


def draw(records: Mapping[Case, dict[str, Any]], groups: Sequence[tuple[int, bool]]) -> bytes:
    """Draw the mean top-1 of each method with its 95 % interval, a panel for each group, as SVG.

    Args:
        records: the records of the cases.
        groups: the numbers of labels, each with whether the teacher was trained on the same labels.
    """
    figure = Figure(figsize=(7, 0.8 + 1.9 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), sharex=True, squeeze=False)[:, 0]
    full = next((record["methods"]["student"]["mean"] for case, record in records.items() if case.is_reference), None)
    for axes, (labels, own) in zip(panels, groups, strict=True):
        _panel(axes, records, labels, own)
        if full is not None:
            axes.axvline(full, color="C3", linestyle="--", linewidth=1)
        teacher = "the teacher learned from the same labels" if own else "the teacher learned from all labels"
        axes.set_title(f"{labels:,} labels; {teacher}", loc="left", fontsize=10)
    if full is not None:
        place = (full, 1.02)
        panels[0].annotate(
            "student alone, all labels", place, xycoords=("data", "axes fraction"), color="C3", ha="right", fontsize=8
        )
    panels[0].legend(frameon=False, fontsize=8, loc="lower left")
    panels[-1].set_xlabel("top-1 % on the test images, mean and 95 % interval over the seeds")
    return picture(figure, ".svg")


def _panel(axes: Axes, records: Mapping[Case, dict[str, Any]], labels: int, own: bool) -> None:
    for unlabelled, (marker, color, name) in _IMAGES.items():
        methods = records.get(Case(labels, own, unlabelled), {"methods": {}})["methods"]
        rows = [row for row, method in enumerate(METHODS) if method in methods]
        found = [as_estimate(methods[METHODS[row]], "mean") for row in rows]
        shown = [(row, one) for row, one in zip(rows, found, strict=True) if one is not None]
        places = [row + (0.12 if unlabelled else -0.12) for row, _ in shown]
        means, errors = [one.mean for _, one in shown], [one.interval or 0 for _, one in shown]
        axes.errorbar(means, places, xerr=errors, fmt=marker, color=color, capsize=3, markersize=5, label=name)
    axes.set_yticks(range(len(METHODS)), [name_of(method) for method in METHODS], fontsize=9)
    axes.set_ylim(len(METHODS) - 0.5, -0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
