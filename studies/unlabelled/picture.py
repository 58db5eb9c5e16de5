"""The picture of the study: how far each method comes from the student alone to a student with all labels."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cases import Case
from factor_transfer.report.confidence import as_estimate
from factor_transfer.report.names import name_of
from factor_transfer.report.plot import picture

# Marker, colour and name of the figures without and with the unlabelled images.
_IMAGES = {False: ("o", "C1", "labelled images"), True: ("s", "C0", "all images")}


def draw(records: Mapping[Case, Mapping[str, Any]], groups: Sequence[Case]) -> bytes:
    """Draw the mean top-1 of each method with its 95 % interval as SVG.

    Args:
        records: the records of the cases.
        groups: the cases with unlabelled images that have a panel each, which also shows those without.
    """
    figure = Figure(figsize=(7, 0.8 + 2 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), squeeze=False)[:, 0]
    for axes, group in zip(panels, groups, strict=True):
        _panel(axes, records, group)
        full = records.get(Case(group.data, group.data.images))
        if full is not None:
            top1 = full["methods"]["student"]["mean"]
            axes.axvline(top1, color="C3", linestyle="--", linewidth=1, label="student alone, all labels")
        axes.set_title(f"{group.data.title}, {group.title}", loc="left", fontsize=10)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9
    )
    panels[-1].set_xlabel("top-1 % on the test images, mean and 95 % interval over the seeds")
    return picture(figure, ".svg")


def _panel(axes: Axes, records: Mapping[Case, Mapping[str, Any]], group: Case) -> None:
    for unlabelled, (marker, color, name) in _IMAGES.items():
        methods = records.get(replace(group, unlabelled=unlabelled), {"methods": {}})["methods"]
        found = [as_estimate(methods[one], "mean") if one in methods else None for one in group.methods]
        shown = [(row, one) for row, one in enumerate(found) if one is not None]
        places = [row + (0.12 if unlabelled else -0.12) for row, _ in shown]
        means, errors = [one.mean for _, one in shown], [one.interval or 0 for _, one in shown]
        axes.errorbar(means, places, xerr=errors, fmt=marker, color=color, capsize=3, markersize=5, label=name)
    axes.set_yticks(range(len(group.methods)), [name_of(method) for method in group.methods], fontsize=9)
    axes.set_ylim(len(group.methods) - 0.5, -0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
