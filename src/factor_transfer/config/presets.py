"""Whose settings: what the implementations of Factor Transfer do, so that anybody's figures can be reproduced.

A preset holds where a recipe says nothing; what the recipe says stands. What is *not* reproduced are faults that no
setting should bring back: a paraphraser other than the one that was trained, a teacher that is shown images unlike
those it was trained on.
"""

from collections.abc import Mapping
from typing import Any

from factor_transfer.errors import choose
from factor_transfer.taps.stages import LAST_CONV

PRESETS: dict[str, dict[str, Any]] = {
    # The paper's, for CIFAR-10: ResNet-56 -> ResNet-20.
    "authors": {
        "augment": {"crop_padding": 4, "flip": True},
        "teacher": {"epochs": 164, "schedule": "step", "milestones": [82, 123]},
        "paraphraser": {"reconstruction": "l1", "epochs": 6, "learning_rate": 0.1},
        "student": {"epochs": 164, "learning_rate": 0.1, "schedule": "step", "milestones": [82, 123]},
        "transfer": {"factor": {"beta": 500.0, "p": 1.0}},
    },
    # ImageNet: ResNet-34 -> ResNet-18.
    "torchdistill": {
        "paraphraser": {"reconstruction": "l2-sum", "epochs": 1, "learning_rate": 0.01},
        "student": {
            "epochs": 90,
            "learning_rate": 0.1,
            "weight_decay": 1e-4,
            "schedule": "step",
            "milestones": [30, 60],
        },
        "transfer": {"factor": {"beta": 1000.0}},
    },
    # CIFAR-100, many pairs. The factor's spatial attention is compared, not the factor.
    "repdistiller": {
        "augment": {"crop_padding": 4, "flip": True},
        "paraphraser": {"reconstruction": "l2", "epochs": 30, "learning_rate": 0.05},
        "student": {"epochs": 240, "learning_rate": 0.05, "schedule": "step", "milestones": [150, 180, 210]},
        "transfer": {"factor": {"beta": 200.0, "attention": True, "batch_norm": True}},
    },
    # CIFAR-10: ResNet-50 -> ResNet-18. Taps before batch norm, shortcut and activation; a very weak term.
    "mmrazor": {
        "augment": {"crop_padding": 4, "flip": True},
        "teacher": {"tap": LAST_CONV},
        "paraphraser": {"reconstruction": "l2-unit", "epochs": 20, "learning_rate": 0.1},
        "student": {
            "tap": LAST_CONV,
            "epochs": 200,
            "learning_rate": 0.1,
            "weight_decay": 1e-4,
            "schedule": "step",
            "milestones": [100, 150],
        },
        "transfer": {"factor": {"beta": 1.0, "batch_norm": True}},
    },
}


def with_preset(document: Mapping[str, Any], preset: str) -> dict[str, Any]:
    """A recipe's document, with the preset's values where it has none.

    A network that comes with ``weights`` and says no ``epochs`` is not trained for the preset's.

    Raises:
        InputError: there is no such preset.
    """
    merged = _under(document, PRESETS[choose("preset", preset, PRESETS)])
    for table in ("teacher", "paraphraser"):
        own = document.get(table)
        if isinstance(own, Mapping) and "weights" in own and "epochs" not in own:
            merged[table].pop("epochs", None)
    terms = document.get("transfer")
    if isinstance(terms, Mapping) and terms and "factor" not in terms and "method" not in terms:
        merged["transfer"] = terms  # other terms are not joined by a factor term that no one asked for
    return merged


def _under(upper: Mapping[str, Any], lower: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(upper)
    for key, value in lower.items():
        if isinstance(value, Mapping):
            own = merged.get(key, {})
            merged[key] = _under(own, value) if isinstance(own, Mapping) else own
        else:
            merged.setdefault(key, value)
    return merged
