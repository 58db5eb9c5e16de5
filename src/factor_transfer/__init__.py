"""Factor Transfer: compress a trained network into a small one (Kim, Park, Kwak, NeurIPS 2018)."""

from factor_transfer.methods import (
    CRD,
    DIST,
    DKD,
    KD,
    OFD,
    AttentionTransfer,
    Distillation,
    FactorTransfer,
    FitNets,
    Pair,
    Paraphraser,
    ParaphraserTraining,
    ReviewKD,
    Side,
    SimKD,
    Supervised,
    Term,
    Translator,
    factor_loss,
)
from factor_transfer.models import build_model

__version__ = "0.1.0"

__all__ = [
    "CRD",
    "DIST",
    "DKD",
    "KD",
    "OFD",
    "AttentionTransfer",
    "Distillation",
    "FactorTransfer",
    "FitNets",
    "Pair",
    "Paraphraser",
    "ParaphraserTraining",
    "ReviewKD",
    "Side",
    "SimKD",
    "Supervised",
    "Term",
    "Translator",
    "build_model",
    "factor_loss",
]
