"""Stage 1: the teacher, trained on labels or loaded from given weights."""

from typing import Any

from torch import nn

from factor_transfer.methods import Supervised, Teacher, cross_entropy
from factor_transfer.models import Normalize
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.provenance import training_provenance, weights_provenance
from factor_transfer.pipeline.stages.stage import (
    StageTraining,
    find_stage,
    finish_stage,
    in_work_dir,
    start_stage,
    train_one,
)
from factor_transfer.pipeline.weights.initial import init_network
from factor_transfer.pipeline.weights.look import check_features, look_at_teacher


@in_work_dir
def make_teacher(experiment: Experiment, fresh: bool = False) -> Artefact:
    """Train the teacher on labels, or load the weights that the recipe names.

    Args:
        experiment: the experiment.
        fresh: whether to train the teacher again even if it is up to date.

    Returns:
        The finished stage.
    """
    section = experiment.recipe.teacher
    folder = experiment.work_dir / "teacher"
    done = start_stage(experiment, folder, teacher_provenance(experiment), fresh)
    if done:
        return done
    model, record = init_network(experiment, "teacher", section)
    normalize = experiment.normalize((record["mean"], record["std"]))
    if section.epochs is None:
        check_features(model, normalize, experiment.taps[0], experiment.examples, section.has_classifier)
        if section.has_classifier:
            for warning in look_at_teacher(experiment, model, normalize, recorded=None).warnings:
                experiment.say(f"Warning: {warning}")
        else:
            experiment.say("teacher  has no classifier for these classes; only its features are used")
            record["classifier"] = False
        record |= {"stage": "teacher", "epoch": None, "seconds": 0.0}
        return finish_stage(folder, model.state_dict(), record)
    method = Supervised(model, normalize, cross_entropy(section.label_smoothing))
    return train_one(StageTraining(experiment, folder, section, method, model, record, stage="teacher"))


def teacher_provenance(experiment: Experiment) -> dict[str, Any]:
    """The inputs of the teacher stage."""
    section = experiment.recipe.teacher
    if section.epochs is None:  # the teacher is not trained, so the settings of a training do not count
        model = {"model": section.model, "args": section.args.model_dump(mode="json")}
        return {**training_provenance(experiment, section), "teacher": {**model, **weights_provenance(section)}}
    return training_provenance(experiment, section, teacher=section)


def require_teacher(experiment: Experiment) -> Artefact:
    """The finished teacher stage.

    Raises:
        InputError: if the teacher is missing, or was trained with other inputs than this recipe's.
    """
    return find_stage(experiment, "teacher", "teacher", lambda: teacher_provenance(experiment))


def frozen_teacher(experiment: Experiment, model: nn.Module, normalize: Normalize) -> Teacher:
    """A trained network as a frozen teacher, which runs in the fastest way that reproduces its outputs.

    Args:
        experiment: the experiment.
        model: the trained network: images (B, C, H, W) -> logits (B, K).
        normalize: the module that turns raw images into the network's input.

    Raises:
        InputError: if its logits or features are not finite, or a feature is zero everywhere.
    """
    has_classifier = experiment.recipe.teacher.has_classifier
    check_features(model, normalize, experiment.taps[0], experiment.examples, has_classifier)
    precision = experiment.recipe.teacher_precision
    return Teacher(model, normalize, experiment.examples, reduced=precision == "bf16-mixed")
