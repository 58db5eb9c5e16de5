"""Charts as SVG within the page, in the page's colours: they can be read in light, in dark and in print."""

import re
import warnings
from collections.abc import Callable
from io import StringIO
from typing import TYPE_CHECKING, Any

from factor_transfer.errors import printable

if TYPE_CHECKING:  # the libraries take a second to import, which a command that draws nothing need not wait for
    from markupsafe import Markup
    from matplotlib.figure import Figure

# matplotlib draws in these colours, which nothing else has; each then becomes the page's own, a CSS variable.
INK, MUTED, RULE = "#000001", "#000002", "#000003"
TEACHER, ALONE, STUDENT = "#000004", "#000005", "#000006"
OTHERS = ("#000007", "#000008", "#000009", "#00000a", "#00000b", "#00000c")
_VARIABLES = {
    **{INK: "ink", MUTED: "muted", RULE: "rule", TEACHER: "teacher", ALONE: "alone", STUDENT: "student"},
    **{color: f"other-{number}" for number, color in enumerate(OTHERS, 1)},
}
# Shades of a matrix's cells. A picture cannot take the page's colours: it is transparent, and this blue suits both.
SHADE = (0.23, 0.51, 0.85)

_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: it can be searched, and has the page's font
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
_LONG = 22  # characters; a longer name would leave no room for what it is the name of


def chart(name: str, label: str, size: tuple[float, float], paint: Callable[["Figure"], None]) -> "Markup":
    """A chart as inline SVG.

    The same chart has the same bytes each time; colours other than this module's are left as they are.

    Args:
        name: of the chart, unlike that of any other chart on the page.
        label: what it shows, for those who cannot see it.
        size: width and height in inches. One inch has 72 units of the SVG; text is 9.5 units high.
        paint: draws into an empty figure.
    """
    import matplotlib
    from markupsafe import Markup, escape
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # a person's own settings do not reach into the page
        matplotlib.rcParams.update(_STYLE | {"svg.hashsalt": name})
        # The page's font is another one than that which the text is measured with, and may have what this one has not.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure)
        drawn = StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Markup(_inline(drawn.getvalue(), str(escape(label))))


def _inline(document: str, label: str) -> str:
    """An SVG document as an element of a page, in the page's colours."""
    text = document[document.index("<svg") :]
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s(xmlns(:\w+)?|version)="[^"]*"', "", text)
    # Names such as "axes_1" are in every chart; only what is referred to needs one.
    wanted = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r'\sid="([^"]*)"', lambda found: found[0] if found[1] in wanted else "", text)
    width, height = re.findall(r'(?:width|height)="([\d.]+)pt"', text)[:2]
    _, _, rest = text.partition(">")
    for color, variable in _VARIABLES.items():
        rest = rest.replace(color, f"var(--{variable})")
    rest = re.sub(r"\n\s*", "\n", rest).replace("\n\n", "\n").strip()
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">\n{rest}'


def short(name: str, most: int = _LONG) -> str:
    """A name that may come from anywhere, as a chart can show it: on one line, and not too long."""
    text = printable(name)
    return text if len(text) <= most else f"{text[: most - 1]}…"
