"""The names of the methods in the literature."""

from factor_transfer.config.recipe import ALONE

NAMES = {"factor": "Factor Transfer", "kd": "KD", "fitnets": "FitNets", "at": "AT"}
NAMES |= {"dkd": "DKD", "dist": "DIST", "crd": "CRD", "reviewkd": "ReviewKD", "simkd": "SimKD", "ofd": "OFD"}


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
    name = "student alone" if method == ALONE else " + ".join(NAMES.get(term, term) for term in terms)
    key, equals, value = variant.partition("=")
    # The table is clear from the name, except where the method has several terms.
    key = key.removeprefix("student.").removeprefix("transfer.")
    key = key.removeprefix(f"{terms[0]}.") if len(terms) == 1 else key
    return ", ".join(part for part in (name, f"{key} = {value}" if equals else variant) if part)


def the_name_of(method: str) -> str:
    """The name of a method within a sentence, with the article that ``"student"`` needs: "the student alone"."""
    return f"the {name_of(method)}" if method.partition(",")[0] == ALONE else name_of(method)
