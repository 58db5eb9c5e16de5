"""The inputs of stages and caches: they are recorded, and a stage is up to date as long as they stay the same."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from factor_transfer.config.recipe import Network, Training
from factor_transfer.data.augment.crops import OF_STUDENT
from factor_transfer.files import sha256
from factor_transfer.methods import TERMS
from factor_transfer.methods.own import source as source_of_term
from factor_transfer.models.external import source
from factor_transfer.pipeline.artefact import Artefact, find
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.weights.zoo import weights_file
from factor_transfer.settings import Options

# Settings that were added later, with the values that leave a stage as it was before. Older records lack these
# settings, so at these values they are not recorded.
_ADDED = {"factor": {"paraphrase": True}}

_ADDED_TO_ALL: dict[str, Any] = {
    "weights_key": None,
    "classes": None,
    "unlabelled_share": None,
    "label_smoothing": 0.0,
    "ema_decay": None,
    "labels": "all",
}

# Recorded with their resolved values, not as written in the recipe; fine-tuning is recorded by its own stage.
_RESOLVED = {"tap", "mean", "std", "weights", "finetune"}


def cache_provenance(
    experiment: Experiment, teacher: Artefact, name: str, taps: Sequence[str], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The inputs of a part of the factor cache.

    Args:
        experiment: the experiment.
        teacher: the finished teacher.
        name: the term whose targets are cached, or ``"teacher"`` for features and logits.
        taps: the teacher's taps that the targets are computed from.
        settings: the term's settings that the targets depend on, see ``Term.target_settings``.
    """
    recipe = experiment.recipe
    inputs = {
        **settings,
        "teacher": teacher.fingerprint,
        "taps": ", ".join(taps),
        "data": experiment.data.fingerprint,
        "augment": recipe.augment.model_dump(mode="json", exclude=OF_STUDENT),
        "cache": recipe.cache.model_dump(mode="json"),
        "precision": experiment.precision,
        "teacher_precision": recipe.teacher_precision,
        **unlabelled_provenance(experiment),
        **code_provenance([name]),
    }
    if name in TERMS and TERMS[name].needs_paraphraser(settings):
        paraphraser = find(experiment.work_dir / "paraphraser")
        inputs["paraphraser"] = paraphraser.fingerprint if paraphraser else None
    return inputs


def training_provenance(experiment: Experiment, section: Training, **sections: Options) -> dict[str, Any]:
    """The inputs of a training: the images, the precision, the augmentation, and some sections of the recipe.

    Args:
        experiment: the experiment.
        section: the recipe's section of the stage.
        sections: the sections whose settings the result depends on, by their names in the record.
    """
    data, recipe = experiment.data, experiment.recipe
    mean, std = getattr(section, "mean", None), getattr(section, "std", None)
    inputs: dict[str, Any] = {
        "precision": experiment.precision,
        "data": data.fingerprint,
        "mean": list(mean or data.mean),
        "std": list(std or data.std),
        "augment": recipe.augment.model_dump(mode="json", exclude=OF_STUDENT),
    }
    if recipe.sync_batch_norm:
        inputs["sync_batch_norm"] = True
    for name, part in sections.items():
        inputs[name] = part.model_dump(mode="json", exclude=_RESOLVED if part is section else set())
        for key, value in (_ADDED_TO_ALL | _ADDED.get(name, {})).items():
            if key in inputs[name] and inputs[name][key] == value:
                del inputs[name][key]
        if part is section:
            inputs[name] |= weights_provenance(section)
    source_file = source(section.model) if isinstance(section, Network) else None
    if source_file is not None:  # a network defined by the user changes with its file
        inputs["source"] = sha256(source_file)
    return inputs


def frozen_provenance(experiment: Experiment, has_teacher: bool = True) -> dict[str, Any]:
    """The settings of the factor cache and the teacher's precision, as far as they differ from the defaults.

    Args:
        experiment: the experiment.
        has_teacher: whether the stage uses the teacher.
    """
    recipe = experiment.recipe
    inputs: dict[str, Any] = {}
    if recipe.cache.views is not None:
        inputs["cache"] = recipe.cache.model_dump(mode="json")
    if has_teacher and recipe.teacher_precision is not None:
        inputs["teacher_precision"] = recipe.teacher_precision
    return inputs


def code_provenance(names: Iterable[str]) -> dict[str, Any]:
    """The SHA-256 of the source files of those terms that are defined outside this package; empty if there are none."""
    files = {name: source_of_term(TERMS[name]) for name in names if name in TERMS}
    hashes = {name: sha256(file) for name, file in files.items() if file is not None}
    return {"code": hashes} if hashes else {}


def unlabelled_provenance(experiment: Experiment) -> dict[str, Any]:
    """The images without labels; empty if there are none."""
    fingerprint = experiment.data.unlabelled_fingerprint
    return {} if fingerprint is None else {"unlabelled": fingerprint}


def weights_provenance(section: Training) -> dict[str, Any]:
    """The initial weights of a stage: ``"pretrained"`` or the SHA-256 of their file; empty if they are random.

    Args:
        section: the recipe's section of the stage.
    """
    if section.weights is None:
        return {}
    given = section.model_dump(mode="json", include={"weights_key", "classes"}, exclude_none=True)
    if section.weights == "pretrained":
        return {"weights": section.weights, **given}
    return {"weights": sha256(weights_file(section.weights)), **given}
