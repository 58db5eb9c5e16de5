"""The names of the methods in the literature."""

from factor_transfer.config.recipe import ALONE

NAMES = {"factor": "Factor Transfer", "kd": "KD", "fitnets": "FitNets", "at": "AT"}
NAMES |= {"dkd": "DKD", "dist": "DIST", "crd": "CRD", "reviewkd": "ReviewKD", "simkd": "SimKD", "ofd": "OFD"}


def name_of(method: str) -> str:
    """The name of a method in the literature.

    Example:
        >>> from factor_transfer.report.names import name_of
        >>> name_of("factor+kd")
        'Factor Transfer + KD'
    """
    return "student alone" if method == ALONE else " + ".join(NAMES.get(term, term) for term in method.split("+"))


def the_name_of(method: str) -> str:
    """The name of a method within a sentence, with the article that ``"student"`` needs: "the student alone"."""
    return f"the {name_of(method)}" if method == ALONE else name_of(method)
