"""Training methods, and the terms of a distillation by name."""

from factor_transfer.methods.base import Frozen, Losses, Method, Supervised, load_trained_state, trained_state
from factor_transfer.methods.criterion import Criterion, cross_entropy
from factor_transfer.methods.distillation import Distillation
from factor_transfer.methods.own import is_own
from factor_transfer.methods.paraphraser import Paraphraser, ParaphraserTraining, Translator
from factor_transfer.methods.teacher import Teacher
from factor_transfer.methods.term import Pair, Side, Target, Term, configured, match
from factor_transfer.methods.terms.attention import AttentionTransfer, attention_loss
from factor_transfer.methods.terms.crd import CRD
from factor_transfer.methods.terms.factor import FactorTransfer, factor_loss
from factor_transfer.methods.terms.fitnets import FitNets
from factor_transfer.methods.terms.logits.dist import DIST
from factor_transfer.methods.terms.logits.dkd import DKD, dkd_loss
from factor_transfer.methods.terms.logits.kd import KD, kd_loss
from factor_transfer.methods.terms.logits.term import LogitsTerm
from factor_transfer.methods.terms.ofd import OFD
from factor_transfer.methods.terms.reviewkd import ReviewKD
from factor_transfer.methods.terms.simkd import ReusedClassifier, SimKD

__all__ = [
    "CRD",
    "DIST",
    "DKD",
    "KD",
    "OFD",
    "TERMS",
    "AttentionTransfer",
    "Criterion",
    "Distillation",
    "FactorTransfer",
    "FitNets",
    "Frozen",
    "LogitsTerm",
    "Losses",
    "Method",
    "Pair",
    "Paraphraser",
    "ParaphraserTraining",
    "ReusedClassifier",
    "ReviewKD",
    "Side",
    "SimKD",
    "Supervised",
    "Target",
    "Teacher",
    "Term",
    "Translator",
    "attention_loss",
    "configured",
    "cross_entropy",
    "dkd_loss",
    "factor_loss",
    "kd_loss",
    "load_trained_state",
    "match",
    "own_terms",
    "terms_of_features",
    "trained_state",
]

# The keys of a recipe's [transfer.NAME] are the term's keyword-only arguments. The names of sums follow this order.
TERMS: dict[str, type[Term]] = {
    "factor": FactorTransfer,
    "fitnets": FitNets,
    "at": AttentionTransfer,
    "crd": CRD,
    "ofd": OFD,
    "reviewkd": ReviewKD,
    "simkd": SimKD,
    "kd": KD,
    "dkd": DKD,
    "dist": DIST,
}


def own_terms() -> list[str]:
    """The names of the terms that are defined outside this package."""
    return [name for name, term in TERMS.items() if is_own(term)]


def terms_of_features() -> list[str]:
    """The names of the terms that can be used with a teacher without a classifier."""
    return [name for name, term in TERMS.items() if not term.needs_classifier]
