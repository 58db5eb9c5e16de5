"""The names of the methods in the literature."""

from factor_transfer.config.recipe import ALONE
from factor_transfer.methods import TERMS


def name_of(method: str) -> str:
    """The name of a method in the literature, with the setting that a row of a comparison has, see ``Recipe.row``.

    Example:
        >>> from factor_transfer.report.names import name_of
        >>> name_of("factor+kd")
        'Factor Transfer + KD'
        >>> name_of("factor,transfer.factor.beta=50")
        'Factor Transfer, beta = 50'
    """
    method, _, variant = method.partition(",")
    terms = method.split("+")
    name = "student alone" if method == ALONE else " + ".join(_title(term) for term in terms)
    key, equals, value = variant.partition("=")
    # The table is clear from the name, except where the method has several terms.
    key = key.removeprefix("student.").removeprefix("transfer.")
    key = key.removeprefix(f"{terms[0]}.") if len(terms) == 1 else key
    return ", ".join(part for part in (name, f"{key} = {value}" if equals else variant) if part)


def _title(term: str) -> str:
    known = TERMS.get(term)  # a record may have a term that only the script of its run knows
    return known.title or term if known else term


def the_name_of(method: str) -> str:
    """The name of a method within a sentence, with the article that ``"student"`` needs: "the student alone"."""
    return f"the {name_of(method)}" if method.partition(",")[0] == ALONE else name_of(method)
