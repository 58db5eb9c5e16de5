"""Factor Transfer: compress a trained network into a small one (Kim, Park, Kwak, NeurIPS 2018)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from factor_transfer.versions import __version__ as __version__

if TYPE_CHECKING:
    from factor_transfer.deploy.student import load_student, save_student
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
        attention_loss,
        dkd_loss,
        factor_loss,
        kd_loss,
        match,
    )
    from factor_transfer.models import build_model


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
    "attention_loss",
    "build_model",
    "dkd_loss",
    "factor_loss",
    "kd_loss",
    "load_student",
    "match",
    "save_student",
]

# The modules of the public names that are not in ``methods``.
_ELSEWHERE = {
    "build_model": "factor_transfer.models",
    "load_student": "factor_transfer.deploy.student",
    "save_student": "factor_transfer.deploy.student",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that loading a student does not import the training methods."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ELSEWHERE.get(name, "factor_transfer.methods")), name)


def __dir__() -> list[str]:
    """The names of this module, the public ones among them, for completion in an editor."""
    return sorted({*globals(), *__all__})
