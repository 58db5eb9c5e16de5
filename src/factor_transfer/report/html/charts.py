"""The charts of the page."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

from torch import Tensor

from factor_transfer.report.html.curves import Curve
from factor_transfer.report.html.svg import INK, MUTED, OTHERS, RULE, SHADE, TEACHER, chart, short
from factor_transfer.report.metrics import Reliability

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 4.7  # inches; two charts are side by side, or below each other if the page is narrow
_FEW = 12  # the largest number of classes for which a matrix has room for figures
_NAMED = 30  # the largest number of classes for which a matrix has room for names

Lines = Mapping[str, tuple[str, Curve]]  # name of a line -> its colour, its values by epoch


def curves(name: str, title: str, unit: str, lines: Lines, dashed: Lines | None = None, log: bool = False) -> "Markup":
    """A chart of figures over the epochs.

    Args:
        name: the name of the chart, see ``svg.chart``.
        title: the title of the chart.
        unit: the unit of the figures.
        lines: the lines.
        dashed: dashed lines in the same colours, such as those for the training images.
        log: whether to use a logarithmic axis if the figures vary by more than a factor of four.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        for drawn, style in ((dashed or {}, "--"), (lines, "-")):
            for label, (color, curve) in drawn.items():
                shown = label if style == "-" or label not in lines else None
                marker = "o" if len(curve) == 1 else ""
                axes.plot(
                    list(curve), list(curve.values()), style, color=color, label=shown, marker=marker, markersize=3,
                    linewidth=1.6 if style == "-" else 1,
                )  # fmt: skip
        values = [value for _, curve in lines.values() for value in curve.values()]
        if log and min(values) > 0 and max(values) > 4 * min(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.set_ylabel(unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(lines) > 1:
            axes.legend()

    return chart(name, f"{title}, {unit}, over the epochs: {', '.join(lines)}", (_WIDTH, 3.0), paint)


def colors(names: Sequence[str]) -> dict[str, str]:
    """A colour for each of several lines other than those of teacher and student."""
    return dict(zip(names, cycle(OTHERS), strict=False))


def class_accuracy(classes: Sequence[str], networks: Mapping[str, tuple[str, Tensor]]) -> "Markup":
    """A chart of the accuracy of each class, with one row per class and one dot per network.

    Args:
        classes: the names of the K classes.
        networks: the colour and the accuracies (K,) of each network by name, in percent; NaN is left out.
    """

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        for row in range(len(classes)):
            values = [accuracy[row].item() for _, accuracy in networks.values() if not accuracy[row].isnan()]
            if values:
                axes.plot([min(values), max(values)], [row, row], color=RULE, linewidth=3, solid_capstyle="round")
        for name, (color, accuracy) in networks.items():
            axes.plot(accuracy.tolist(), range(len(classes)), "o", color=color, markersize=5, label=name)
        _rows(axes, classes)
        axes.set_xlabel("top-1 %")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, handletextpad=0.2, columnspacing=1.2)

    height = 1.1 + 0.26 * len(classes)
    return chart("classes", f"Top-1 of each class: {', '.join(networks)}", (_WIDTH, height), paint)


def confusion(name: str, title: str, classes: Sequence[str], counts: Tensor) -> "Markup":
    """A confusion matrix, with one row per true class and one column per predicted class.

    Args:
        name: the name of the chart, see ``svg.chart``.
        title: the name of the network.
        classes: the names of the K classes.
        counts: the numbers of images, (K, K).
    """
    import numpy as np

    shares = (counts.double() / counts.sum(1, keepdim=True).clamp_min(1)).numpy()
    cells = np.empty((*shares.shape, 4))
    # The square root makes rare errors visible; the opacity is limited so that the figures stay readable.
    cells[..., :3], cells[..., 3] = SHADE, 0.75 * shares**0.5

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        axes.imshow(cells, interpolation="none")
        axes.set_title(title)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        names = [short(one, 12) for one in classes] if len(classes) <= _NAMED else []
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        if len(classes) <= _FEW:
            for row, column in np.argwhere(shares >= 0.005):
                text = f"{100 * shares[row, column]:.0f}"
                axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=INK)

    return chart(name, f"Confusion matrix of the {title}", (3.6, 3.8), paint)


def reliability(networks: Mapping[str, tuple[str, Reliability]]) -> "Markup":
    """A reliability diagram: accuracy over confidence. A calibrated network is on the diagonal.

    Args:
        networks: the colour and the reliability of each network by name.
    """

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        axes.plot([0, 100], [0, 100], color=MUTED, linewidth=0.8, linestyle=":")
        for name, (color, one) in networks.items():
            label = f"{name}, error {one.error:.1f} %"
            sizes = 6 + 120 * one.share
            axes.plot((100 * one.confidence).tolist(), (100 * one.accuracy).tolist(), color=color, linewidth=1.2)
            axes.scatter(
                (100 * one.confidence).tolist(), (100 * one.accuracy).tolist(), sizes.tolist(), color=color, label=label
            )
        axes.set_xlim(0, 102)
        axes.set_ylim(0, 102)
        axes.set_xlabel("confidence %: the probability of the predicted class")
        axes.set_ylabel("accuracy %")
        legend = axes.legend(loc="upper left")
        for handle in legend.legend_handles:
            handle.set_sizes([24])  # type: ignore[union-attr] # the handles of scatter plots have sizes

    return chart("reliability", f"Reliability diagram: {', '.join(networks)}", (_WIDTH, 3.6), paint)


def seeds(
    rows: Mapping[str, tuple[str, Sequence[float], float | None, float | None]], teacher: float | None
) -> "Markup":
    """A chart of the top-1 of each method, with one dot per seed, the mean with its interval, and the teacher's top-1.

    Args:
        rows: the colour, the values of the seeds, the mean and half the width of the interval of each method.
        teacher: the top-1 of the teacher; ``None`` if it has no classifier.
    """

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        for row, (color, values, mean, half) in enumerate(rows.values()):
            axes.plot(values, [row + 0.2] * len(values), "o", color=color, markersize=3.5, alpha=0.55, linewidth=0)
            if mean is not None:
                axes.errorbar(mean, row - 0.05, xerr=half or 0, fmt="s", color=color, markersize=5, capsize=3)
        if teacher is not None:
            _teacher(axes, teacher)
        low, high = axes.get_xlim()
        _rows(axes, list(rows))
        # The dots determine the limits of the axis, since the interval of two seeds may exceed 0..100 %.
        points = [value for _, values, _, _ in rows.values() for value in values]
        points += [] if teacher is None else [teacher]
        margin = 0.6 * max(max(points) - min(points), 0.5)
        axes.set_xlim(max(low, min(points) - margin, 0), min(high, max(points) + margin, 101))
        axes.set_xlabel("top-1 %")

    size = _WIDTH, 1.1 + 0.42 * len(rows)
    return chart("seeds", f"Top-1 of each method and seed, and of the teacher: {', '.join(rows)}", size, paint)


def cost(points: Mapping[str, tuple[str, float, float]], teacher: float | None) -> "Markup":
    """A chart of accuracy over training time.

    Args:
        points: the colour, the training time relative to the student alone and the mean top-1 of each method.
        teacher: the top-1 of the teacher; ``None`` if it has no classifier.
    """

    def paint(figure: "Figure") -> None:
        axes = figure.subplots()
        for name, (color, price, mean) in points.items():
            axes.plot(price, mean, "s", color=color, markersize=6, label=name, linewidth=0)
        if teacher is not None:
            axes.axhline(teacher, color=TEACHER, linestyle="--", linewidth=1)
            axes.annotate("teacher", (0.99, teacher), xycoords=("axes fraction", "data"), color=TEACHER, ha="right",
                          va="bottom")  # fmt: skip
        axes.margins(0.12)
        axes.set_xlabel("training time, relative to the student alone")
        axes.set_ylabel("top-1 %, mean")
        axes.legend(loc="best", handletextpad=0.2)

    return chart("cost", f"Mean top-1 over the training's cost: {', '.join(points)}", (_WIDTH, 3.2), paint)


def _rows(axes: "Axes", names: Sequence[str]) -> None:
    """Label the rows of a chart, from top to bottom."""
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)


def _teacher(axes: "Axes", top1: float) -> None:
    axes.axvline(top1, color=TEACHER, linestyle="--", linewidth=1)
    place: Any = (top1, 1.01)
    axes.annotate("teacher", place, xycoords=axes.get_xaxis_transform(), color=TEACHER, ha="center", va="bottom")
