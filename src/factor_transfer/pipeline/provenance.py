"""What stages and caches are made from: what their records say, and what must be the same for them to be up to date."""

from collections.abc import Mapping, Sequence
from typing import Any

from factor_transfer.config.recipe import Network, Training
from factor_transfer.files import sha256
from factor_transfer.methods import TERMS
from factor_transfer.models.external import source
from factor_transfer.pipeline.artefact import Artefact, find
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.weights.zoo import weights_file
from factor_transfer.settings import Options

# Settings that came later. With these values a stage is what it was before there were any, and its record lacks them.
_ADDED = {"factor": {"paraphrase": True}}

_ADDED_TO_ALL = {"weights_key": None, "classes": None}

_PLACES = {"tap", "mean", "std", "weights"}  # said as what they come to, not as they are written


def cache_provenance(
    experiment: Experiment, teacher: Artefact, name: str, taps: Sequence[str], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What a part of the factor cache is made from.

    Args:
        experiment: the experiment whose cache it is.
        teacher: the teacher.
        name: the term whose targets are cached, or ``"teacher"`` for features and logits.
        taps: the teacher's taps that it is made from.
        settings: the term's settings that it depends on, see ``Term.target_settings``.
    """
    recipe = experiment.recipe
    inputs = {
        **settings,
        "teacher": teacher.fingerprint,
        "taps": ", ".join(taps),
        "data": experiment.data.fingerprint,
        "augment": recipe.augment.model_dump(mode="json"),
        "cache": recipe.cache.model_dump(mode="json"),
        "precision": experiment.precision,
        "teacher_precision": recipe.teacher_precision,
    }
    if name in TERMS and TERMS[name].needs_paraphraser:
        paraphraser = find(experiment.work_dir / "paraphraser")
        inputs["paraphraser"] = paraphraser.fingerprint if paraphraser else None
    return inputs


def training_provenance(experiment: Experiment, section: Training, **sections: Options) -> dict[str, Any]:
    """What a training is made from: images, precision, augmentation, and some sections of the recipe.

    Args:
        experiment: the experiment.
        section: the recipe's section of the stage.
        sections: the sections whose settings count, by the name that the record has for them.
    """
    data, recipe = experiment.data, experiment.recipe
    mean, std = getattr(section, "mean", None), getattr(section, "std", None)
    inputs: dict[str, Any] = {
        "precision": experiment.precision,
        "data": data.fingerprint,
        "mean": list(mean or data.mean),
        "std": list(std or data.std),
        "augment": recipe.augment.model_dump(mode="json"),
    }
    if recipe.sync_batch_norm:
        inputs["sync_batch_norm"] = True
    for name, part in sections.items():
        inputs[name] = part.model_dump(mode="json", exclude=_PLACES if part is section else set())
        for key, value in (_ADDED_TO_ALL | _ADDED.get(name, {})).items():
            if key in inputs[name] and inputs[name][key] == value:
                del inputs[name][key]
        if part is section:
            inputs[name] |= weights_provenance(section)
    own = source(section.model) if isinstance(section, Network) else None
    if own is not None:  # somebody's own network is what its file says now
        inputs["source"] = sha256(own)
    return inputs


def frozen_provenance(experiment: Experiment, has_teacher: bool = True) -> dict[str, Any]:
    """How the images and the teacher are looked at, where it is not the usual way."""
    recipe = experiment.recipe
    looked: dict[str, Any] = {}
    if recipe.cache.views is not None:
        looked["cache"] = recipe.cache.model_dump(mode="json")
    if has_teacher and recipe.teacher_precision is not None:
        looked["teacher_precision"] = recipe.teacher_precision
    return looked


def weights_provenance(section: Training) -> dict[str, Any]:
    """Where the weights come from that a stage starts from."""
    if section.weights is None:
        return {}
    given = section.model_dump(mode="json", include=set(_ADDED_TO_ALL), exclude_none=True)
    if section.weights == "pretrained":
        return {"weights": section.weights, **given}
    return {"weights": sha256(weights_file(section.weights)), **given}
