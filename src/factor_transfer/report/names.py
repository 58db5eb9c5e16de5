"""What methods are called in the literature."""

from factor_transfer.config.recipe import ALONE

NAMES = {"factor": "Factor Transfer", "kd": "KD", "fitnets": "FitNets", "at": "AT"}
NAMES |= {"dkd": "DKD", "dist": "DIST", "crd": "CRD", "reviewkd": "ReviewKD", "simkd": "SimKD", "ofd": "OFD"}


def name_of(method: str) -> str:
    """What a method is called in the literature: ``"factor+kd"`` is Factor Transfer + KD."""
    return "student alone" if method == ALONE else " + ".join(NAMES.get(term, term) for term in method.split("+"))


def the_name_of(method: str) -> str:
    """The same, as it stands in a sentence: ``"student"`` is the student alone, with its article."""
    return f"the {name_of(method)}" if method == ALONE else name_of(method)
