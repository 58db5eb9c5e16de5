"""Plots of results as image files."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factor_transfer.report.names import name_of

if TYPE_CHECKING:  # it takes a second to import, and is only needed for drawing
    from matplotlib.figure import Figure


# The formats of a picture. Without these entries a file would contain the time at which it was written.
_UNDATED = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
_STYLE: Any = {
    "svg.hashsalt": "comparison",  # the ids in the file are random without it
    "pdf.fonttype": 42,  # TrueType, because some publishers refuse the default, Type 3
}


def plot_comparison(comparison: Mapping[str, Any], path: Path) -> list[Path]:
    """Plot the top-1 of every run, each method's mean with its 95 % interval, and the teacher's top-1.

    The same comparison gives the same bytes.

    Args:
        comparison: the content of ``comparison.json``.
        path: the PNG file to write. A PDF and an SVG file with the same name are written beside it.

    Returns:
        The paths of the files.
    """
    paths = [path.with_suffix(suffix) for suffix in _UNDATED]
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = _draw(comparison)
    for one in paths:
        one.write_bytes(picture(figure, one.suffix))
    return paths


def picture(figure: "Figure", suffix: str) -> bytes:
    """The content of a picture's file, which is the same for the same figure: it has no date and no random names.

    Args:
        figure: the figure.
        suffix: the format, ``".png"``, ``".pdf"`` or ``".svg"``.
    """
    import matplotlib

    file = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(file, format=suffix[1:], metadata=_UNDATED[suffix])
    return file.getvalue()


def _draw(comparison: Mapping[str, Any]) -> "Figure":
    # Not pyplot, which opens a display and leaves state in the process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    methods = comparison["methods"]
    figure = Figure(figsize=(7, 1.2 + 0.42 * len(methods)), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row, (method, figures) in enumerate(methods.items()):
        points = [run["top1"] for run in comparison["runs"] if run["method"] == method and run["top1"] is not None]
        axes.plot(points, [row] * len(points), "o", color="0.6", markersize=4, zorder=1)
        if figures["mean"] is not None:
            axes.errorbar(figures["mean"], row, xerr=figures["interval"] or 0, fmt="s", color="C0", capsize=3, zorder=2)
    if comparison["teacher"] is not None:
        teacher = comparison["teacher"]["top1"]
        axes.axvline(teacher, color="C3", linestyle="--", linewidth=1)
        place = (teacher, 1.01)
        axes.annotate("teacher", place, xycoords=axes.get_xaxis_transform(), color="C3", ha="center", va="bottom")
    student = methods["student"]["mean"]
    if student is not None:
        axes.axvline(student, color="0.4", linestyle=":", linewidth=1)
    # A name may contain "$", which is no formula.
    axes.set_yticks(range(len(methods)), [name_of(method) for method in methods], parse_math=False)
    axes.invert_yaxis()
    low, high = axes.get_xlim()
    axes.set_xlim(max(low, 0), min(high, 101))  # the interval of two seeds may exceed 0..100 %
    axes.set_xlabel("top-1 % on the test images: each seed, mean and 95 % interval")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
