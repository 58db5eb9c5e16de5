"""Ways to train a student, by name."""

from factor_transfer.methods.base import (
    Distillation,
    Frozen,
    Losses,
    Pair,
    Supervised,
    Term,
    load_trained_state,
    trained_state,
)
from factor_transfer.methods.factor import (
    FactorTransfer,
    Paraphraser,
    ParaphraserTraining,
    Translator,
    factor_loss,
)

__all__ = [
    "TERMS",
    "Distillation",
    "FactorTransfer",
    "Frozen",
    "Losses",
    "Pair",
    "Paraphraser",
    "ParaphraserTraining",
    "Supervised",
    "Term",
    "Translator",
    "factor_loss",
    "load_trained_state",
    "trained_state",
]

TERMS: dict[str, type[Term]] = {"factor": FactorTransfer}
