"""Pictures of the results, as SVG: the same bytes for the same records."""

import io
from statistics import mean

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from factor_transfer.report.names import name_of
from results import Results, paired, tops


def curves(result: Results) -> bytes:
    """Top-1 on validation images after each epoch, the mean over seeds."""
    figure, axes = _figure(5.0)
    for method in result.pair.methods:
        runs = [run["epochs"] for run in result.runs(method).values() if "epochs" in run]
        if runs:
            epochs = [line["epoch"] for line in runs[0]]
            means = [mean(run[i]["validation_top1"] for run in runs) for i in range(len(epochs))]
            axes.plot(epochs, means, "--" if method == "student" else "-", label=name_of(method), linewidth=1.2)
    axes.axhline(result.teacher["teacher"]["validation"]["top1"], color="0.5", linestyle=":", label="teacher")
    axes.set_xlabel("epoch")
    axes.set_ylabel("top-1 % on validation images, mean over seeds")
    axes.legend(frameon=False, fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _svg(figure)


def variants(result: Results) -> bytes:
    """Each variant's difference from the recipe, with its 95 % interval."""
    base = tops(result.runs("factor"), "validation")
    found = [
        (variant.name, paired(tops(result.runs("factor", variant), "validation"), base))
        for variant in result.pair.variants
    ]
    shown = [(name, difference) for name, difference in found if difference is not None]
    figure, axes = _figure(1.2 + 0.3 * len(shown))
    for row, (_, difference) in enumerate(shown):
        axes.errorbar(difference.mean, row, xerr=difference.interval or 0, fmt="s", color="C0", capsize=3, markersize=4)
    axes.axvline(0, color="0.5", linestyle=":")
    axes.set_yticks(range(len(shown)), [name for name, _ in shown])
    axes.invert_yaxis()
    axes.set_xlabel("difference from the recipe: top-1 points on validation images, 95 % interval")
    return _svg(figure)


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Figure) -> bytes:
    file = io.BytesIO()
    # Neither random names nor the date: who draws it again gets the same.
    with matplotlib.rc_context({"svg.hashsalt": "study", "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
