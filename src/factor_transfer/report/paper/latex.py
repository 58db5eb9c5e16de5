"""The results of a comparison as a table for LaTeX."""

import unicodedata

from factor_transfer.errors import printable
from factor_transfer.report.confidence import Estimate
from factor_transfer.report.html.tables import difference_of, mean_of
from factor_transfer.report.html.work_dir import Comparison
from factor_transfer.report.names import name_of, the_name_of

_SPECIAL = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
}


def as_latex(comparison: Comparison) -> str:
    r"""The table as a ``tabular`` with the rules of the package booktabs, to be read by ``\input`` in a ``table``."""
    reference = escaped(the_name_of(comparison.against))
    several = len(comparison.seeds) > 1
    teacher = comparison.teacher
    rows = [] if teacher is None else [["teacher", f"${teacher.top1:.2f}$", "", f"${teacher.top5:.2f}$", ""]]
    for method, one in comparison.methods.items():
        mean, difference, top5 = mean_of(one), difference_of(one), comparison.top5(method)
        star = "^{*}" if one.significant else ""
        rows.append(
            [
                escaped(name_of(method)),
                "failed" if mean is None else _math(mean, ".2f"),
                "" if difference is None else _math(difference, "+.2f", star),
                "" if top5 is None else f"${top5:.2f}$",
                f"${comparison.count(method)}$",
            ]
        )
    lines = [" & ".join(row) + r" \\" for row in rows]
    spread = (
        " Mean and 95 % interval (Student's t) over n seeds; differences are computed seed by seed." if several else ""
    )
    starred = any(one.significant for one in comparison.methods.values())
    star = " * p < 0.05, corrected for all methods (Holm's method)." if starred else ""
    return "\n".join(
        [
            r"% In the preamble: \usepackage{booktabs}",
            f"% Accuracy on the test images after the last epoch.{spread}{star}",
            r"\begin{tabular}{lrrrr}",
            r"\toprule",
            rf"method & top-1 \% & difference from {reference} & top-5 \% & $n$ \\",
            r"\midrule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _math(value: Estimate, form: str, star: str = "") -> str:
    half = "" if value.interval is None else rf" \pm {value.interval:{form.lstrip('+')}}"
    return f"${value.mean:{form}}{half}{star}$"


def escaped(text: str) -> str:
    r"""A text with the special characters of LaTeX escaped.

    Example:
        >>> from factor_transfer.report.paper.latex import escaped
        >>> print(escaped("my_term & 5 %"))
        my\_term \& 5 \%
    """
    plain = printable(unicodedata.normalize("NFC", text))
    return "".join(_SPECIAL.get(char, char) for char in plain)
