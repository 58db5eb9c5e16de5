"""Charts as inline SVG in the colours of the page, so that they are readable in light and dark mode and in print."""

import re
import warnings
from collections.abc import Callable
from io import StringIO
from typing import TYPE_CHECKING, Any

from factor_transfer.errors import printable

if TYPE_CHECKING:  # these libraries take a second to import, and are only needed for drawing
    from markupsafe import Markup
    from matplotlib.figure import Figure

# matplotlib draws in these colours, which nothing else uses; each is then replaced by a CSS variable of the page.
INK, MUTED, RULE = "#000001", "#000002", "#000003"
TEACHER, ALONE, STUDENT = "#000004", "#000005", "#000006"
OTHERS = ("#000007", "#000008", "#000009", "#00000a", "#00000b", "#00000c")
_VARIABLES = {
    **{INK: "ink", MUTED: "muted", RULE: "rule", TEACHER: "teacher", ALONE: "alone", STUDENT: "student"},
    **{color: f"other-{number}" for number, color in enumerate(OTHERS, 1)},
}
# The colour of a matrix's cells. Raster images cannot use CSS variables; they are transparent, and this blue suits
# light and dark backgrounds.
SHADE = (0.23, 0.51, 0.85)

_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text, which is searchable and uses the page's font
    "text.parse_math": False,  # a class may be called "$"
    "font.size": 9.5,
    "text.color": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "normal",
    "axes.titlelocation": "left",
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "axes.formatter.useoffset": False,
    "axes.unicode_minus": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}
_LONG = 22  # the longest name in a chart, in characters; a longer one would leave no room for the data


def chart(name: str, label: str, size: tuple[float, float], paint: Callable[["Figure"], None]) -> "Markup":
    """A chart as inline SVG.

    The output is deterministic. Colours that are not defined in this module are preserved.

    Args:
        name: the name of the chart, unique on the page.
        label: the description of the chart, for screen readers.
        size: the width and height in inches, of 72 SVG units each. Text is 9.5 units high.
        paint: a function that draws into an empty figure.
    """
    import matplotlib
    from markupsafe import Markup, escape
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # the user's own settings must not affect the page
        matplotlib.rcParams.update(_STYLE | {"svg.hashsalt": name})
        # Text is only measured with this font; the page's own font may have the missing characters.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure)
        drawn = StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Markup(_inline(drawn.getvalue(), str(escape(label))))


def _inline(document: str, label: str) -> str:
    """Convert an SVG document to an element of the page, in the page's colours."""
    text = document[document.index("<svg") :]
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s(xmlns(:\w+)?|version)="[^"]*"', "", text)
    # Ids such as "axes_1" would occur in every chart; only those that are referred to are needed.
    referenced = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r'\sid="([^"]*)"', lambda found: found[0] if found[1] in referenced else "", text)
    width, height = re.findall(r'(?:width|height)="([\d.]+)pt"', text)[:2]
    _, _, rest = text.partition(">")
    for color, variable in _VARIABLES.items():
        rest = rest.replace(color, f"var(--{variable})")
    rest = re.sub(r"\n\s*", "\n", rest).replace("\n\n", "\n").strip()
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">\n{rest}'


def short(name: str, most: int = _LONG) -> str:
    """A name as charts show it: printable, on one line, and shortened to ``most`` characters."""
    text = printable(name)
    return text if len(text) <= most else f"{text[: most - 1]}…"
