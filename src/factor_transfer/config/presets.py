"""Presets: the settings of published implementations of Factor Transfer, to reproduce their results.

A preset applies where a recipe has no setting of its own. Faults of these implementations are not reproduced: using
another paraphraser than the one that was trained, or giving the teacher images unlike those it was trained on.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from factor_transfer.errors import choose

PRESETS: dict[str, dict[str, Any]] = {
    # The paper's settings for CIFAR-10: ResNet-56 -> ResNet-20.
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
    # CIFAR-100, many pairs. The loss compares the factors' spatial attention instead of the factors.
    "repdistiller": {
        "augment": {"crop_padding": 4, "flip": True},
        "paraphraser": {"reconstruction": "l2", "epochs": 30, "learning_rate": 0.05},
        "student": {"epochs": 240, "learning_rate": 0.05, "schedule": "step", "milestones": [150, 180, 210]},
        "transfer": {"factor": {"beta": 200.0, "attention": True, "batch_norm": True}},
    },
    # CIFAR-10: ResNet-50 -> ResNet-18. The taps precede batch norm, shortcut and activation; the term is very weak.
    "mmrazor": {
        "augment": {"crop_padding": 4, "flip": True},
        "teacher": {"tap": "last-conv"},
        "paraphraser": {"reconstruction": "l2-unit", "epochs": 20, "learning_rate": 0.1},
        "student": {
            "tap": "last-conv",
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
    """Merge a preset into the document of a recipe, whose own values take precedence.

    The ``epochs`` of the preset do not apply to a network for which the recipe gives ``weights`` but no ``epochs``.

    Args:
        document: the parsed TOML document.
        preset: the name of the preset.

    Raises:
        InputError: if there is no such preset.
    """
    merged = _merge(document, PRESETS[choose("preset", preset, PRESETS)])
    for table in ("teacher", "paraphraser"):
        section = document.get(table)
        if isinstance(section, Mapping) and "weights" in section and "epochs" not in section:
            merged[table].pop("epochs", None)
    terms = document.get("transfer")
    if isinstance(terms, Mapping) and terms and "factor" not in terms and "method" not in terms:
        merged["transfer"] = terms  # the preset does not add a factor term to other terms
    return merged


def _merge(document: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(document)
    for key, value in defaults.items():
        if isinstance(value, Mapping):
            section = merged.get(key, {})
            merged[key] = _merge(section, value) if isinstance(section, Mapping) else section
        else:
            merged.setdefault(key, value)
    return merged


def dotted(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys and values of a table, such as ``factor.beta`` in ``transfer``."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
