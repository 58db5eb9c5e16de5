"""What each stage is made from: what its record says, and what must be the same for it to be up to date."""

from collections.abc import Mapping, Sequence
from typing import Any

from factor_transfer.config.recipe import Network, Training
from factor_transfer.files import sha256
from factor_transfer.methods import TERMS, Paraphraser
from factor_transfer.models.external import source
from factor_transfer.pipeline.artefact import Artefact, find
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.weights.zoo import weights_file
from factor_transfer.settings import Options, chosen

# Settings that came later. With these values a stage is what it was before there were any, and its record lacks them.
_ADDED = {"factor": {"paraphrase": True}}

_PLACES = {"tap", "mean", "std", "weights"}  # said as what they come to, not as they are written


def teacher_inputs(experiment: Experiment) -> dict[str, Any]:
    """Of the teacher."""
    section = experiment.recipe.teacher
    if section.epochs is None:  # taken as it is: no training, so none of its settings
        model = {"model": section.model, "args": section.args.model_dump(mode="json")}
        return {**_inputs(experiment, section), "teacher": {**model, **_origin(section)}}
    return _inputs(experiment, section, teacher=section)


def paraphraser_inputs(experiment: Experiment, teacher: Artefact) -> dict[str, Any]:
    """Of the paraphraser."""
    section = experiment.recipe.paraphraser
    assert section is not None
    inputs = _inputs(experiment, section, paraphraser=section)
    if section.epochs is None:
        inputs["paraphraser"] = chosen(section, Paraphraser) | _origin(section)
    return {**inputs, **_looked(experiment), "tap": ", ".join(experiment.taps[0]), "teacher": teacher.fingerprint}


def student_inputs(experiment: Experiment, teacher: Artefact | None, paraphraser: Artefact | None) -> dict[str, Any]:
    """Of the student; those of its terms' teacher and paraphraser, if it has any."""
    recipe = experiment.recipe
    inputs = _inputs(experiment, recipe.student, student=recipe.student, **recipe.terms)
    if any(TERMS[name].uses_taps for name in recipe.terms):
        inputs["taps"] = " → ".join(", ".join(taps) for taps in experiment.taps)
    inputs |= _looked(experiment, asked=teacher is not None)
    if teacher is not None:
        inputs["teacher"] = teacher.fingerprint
    if paraphraser is not None:
        inputs["paraphraser"] = paraphraser.fingerprint
    return inputs


def kept_inputs(
    experiment: Experiment, teacher: Artefact, name: str, taps: Sequence[str], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Of what is kept of a teacher.

    Args:
        experiment: whose it is.
        teacher: who said it.
        name: of the term whose targets it is, or ``"teacher"``.
        taps: that it is made from.
        settings: of the term that it depends on, see ``Term.target_settings``.
    """
    recipe = experiment.recipe
    inputs = {
        **settings,
        "teacher": teacher.fingerprint,
        "taps": ", ".join(taps),
        "data": experiment.data.fingerprint,
        "augment": recipe.augment.model_dump(mode="json"),
        "cache": recipe.cache.model_dump(mode="json"),
        "precision": recipe.precision,
        "teacher_precision": recipe.teacher_precision,
    }
    if name in TERMS and TERMS[name].needs_paraphraser:
        paraphraser = find(experiment.work_dir / "paraphraser")
        inputs["paraphraser"] = paraphraser.fingerprint if paraphraser else None
    return inputs


def _inputs(experiment: Experiment, section: Training, **sections: Options) -> dict[str, Any]:
    """What every training depends on, and some sections of the recipe."""
    data, recipe = experiment.data, experiment.recipe
    mean, std = getattr(section, "mean", None), getattr(section, "std", None)
    inputs: dict[str, Any] = {
        "precision": recipe.precision,
        "data": data.fingerprint,
        "mean": list(mean or data.mean),
        "std": list(std or data.std),
        "augment": recipe.augment.model_dump(mode="json"),
    }
    if recipe.sync_batch_norm:
        inputs["sync_batch_norm"] = True
    for name, part in sections.items():
        inputs[name] = part.model_dump(mode="json", exclude=_PLACES if part is section else set())
        for key, value in _ADDED.get(name, {}).items():
            if inputs[name].get(key) == value:
                del inputs[name][key]
        if part is section:
            inputs[name] |= _origin(section)
    own = source(section.model) if isinstance(section, Network) else None
    if own is not None:  # somebody's own network is what its file says now
        inputs["source"] = sha256(own)
    return inputs


def _looked(experiment: Experiment, asked: bool = True) -> dict[str, Any]:
    """How the images and the teacher are looked at, where it is not the usual way."""
    recipe = experiment.recipe
    looked: dict[str, Any] = {}
    if recipe.cache.views is not None:
        looked["cache"] = recipe.cache.model_dump(mode="json")
    if asked and recipe.teacher_precision is not None:
        looked["teacher_precision"] = recipe.teacher_precision
    return looked


def _origin(section: Training) -> dict[str, Any]:
    """Where the weights come from that a stage starts from."""
    if section.weights is None:
        return {}
    if section.weights == "pretrained":
        return {"weights": section.weights}
    return {"weights": sha256(weights_file(section.weights))}
