"""Fine-tuning of a distilled student on labels, the second part of stage 3 if the recipe has ``[student.finetune]``."""

from pathlib import Path
from typing import Any

import torch

from factor_transfer.config.recipe import Recipe, Student
from factor_transfer.methods import Supervised, cross_entropy
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.finished_run import folder_name
from factor_transfer.pipeline.provenance import training_provenance
from factor_transfer.pipeline.stages.stage import StageTraining, start_stage

_DEFAULT_FRACTION = 0.1  # of the learning rate before


def untuned_folder(work_dir: Path, recipe: Recipe) -> Path:
    """The folder of the student before it is fine-tuned; the fine-tuned one has the folder that all students have."""
    return work_dir / folder_name(recipe.row, recipe.student.seed).replace("student-", "untuned-", 1)


def fine_tuning(experiment: Experiment, folder: Path, untuned: Artefact, fresh: bool) -> Artefact | StageTraining:
    """The training of a distilled student on labels, or the fine-tuned student if it is up to date.

    Args:
        experiment: the experiment, whose recipe has ``[student.finetune]``.
        folder: the folder of the student.
        untuned: the student before fine-tuning.
        fresh: whether to train it again even if it is up to date.
    """
    section = finetune_section(experiment.recipe.student)
    inputs = training_provenance(experiment, section, student=section) | {"untuned": untuned.fingerprint}
    done = start_stage(experiment, folder, inputs, fresh)
    if done:
        return done
    torch.manual_seed(section.seed)
    student = experiment.load(untuned)
    normalize = experiment.normalize(untuned)
    method = Supervised(student, experiment.student_input(normalize), cross_entropy(section.label_smoothing))
    start = untuned.record["validation"].get("top1")
    return StageTraining(experiment, folder, section, method, student, _description(untuned), start, "finetune")


def finetune_section(section: Student) -> Student:
    """The settings of fine-tuning: those of ``[student]``, with what ``[student.finetune]`` changes."""
    assert section.finetune is not None
    rate = section.finetune.learning_rate
    changes: dict[str, Any] = {
        "epochs": section.finetune.epochs,
        "learning_rate": _DEFAULT_FRACTION * section.optimization.learning_rate if rate is None else rate,
        "schedule": "cosine",
        "warmup_epochs": 0.0,
        "labels": "all",
        "finetune": None,
        "unlabelled_share": None,
        "weights": None,
    }
    return section.model_copy(update=changes)


def _description(done: Artefact) -> dict[str, Any]:
    """The part of a student's record that describes the network, and the time of its training so far."""
    keys = ("model", "classes", "image", "mean", "std", "reused_classifier")
    described = {key: done.record[key] for key in keys if key in done.record}
    return {**described, "untuned_seconds": done.record["seconds"]}
