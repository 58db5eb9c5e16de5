"""Stage 2, connectors pre-training: the paraphraser learns to reconstruct the teacher's feature."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from factor_transfer.errors import InputError
from factor_transfer.methods import Paraphraser, ParaphraserTraining
from factor_transfer.models import Normalize, parameters
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.provenance import (
    frozen_provenance,
    training_provenance,
    unlabelled_provenance,
    weights_provenance,
)
from factor_transfer.pipeline.stages.cache import Cache
from factor_transfer.pipeline.stages.stage import (
    StageTraining,
    find_stage,
    finish_stage,
    in_work_dir,
    start_stage,
    train_one,
)
from factor_transfer.pipeline.stages.teacher import frozen_teacher, require_teacher
from factor_transfer.pipeline.weights.initial import load_foreign
from factor_transfer.settings import chosen
from factor_transfer.state_dicts import load_into
from factor_transfer.taps.stages import feature_shape


@in_work_dir
def make_paraphraser(experiment: Experiment, fresh: bool = False) -> Artefact:
    """Train the paraphraser on the finished teacher's features, or load the weights that the recipe names.

    Args:
        experiment: the experiment. Its work dir must have the teacher.
        fresh: whether to train the paraphraser again even if it is up to date.

    Returns:
        The finished stage.

    Raises:
        InputError: if the recipe has no paraphraser, or the teacher has no tap or is missing.
    """
    section = experiment.recipe.paraphraser
    if section is None:
        raise InputError("the recipe has no [paraphraser] section; add one")
    if not experiment.taps[0]:
        raise InputError("no feature map was found in the teacher; name one with teacher.tap")
    teacher = require_teacher(experiment)
    folder = experiment.work_dir / "paraphraser"
    done = start_stage(experiment, folder, paraphraser_provenance(experiment, teacher), fresh)
    if done:
        return done
    model, taps = experiment.load(teacher), experiment.taps[0]
    normalize = experiment.normalize(teacher)
    torch.manual_seed(section.seed)
    paraphrasers = new_paraphrasers(experiment, model, normalize)
    product = as_product(paraphrasers)
    experiment.say(f"paraphraser  {parameters(product):,} parameters, of {', '.join(taps)}")
    record: dict[str, Any] = {
        "in_channels": {tap: paraphraser.in_channels for tap, paraphraser in paraphrasers.items()}
    }
    if section.weights is not None:
        load_foreign(experiment, "paraphraser", section, product)
    if section.epochs is None:
        record |= {"stage": "paraphraser", "epoch": None, "seconds": 0.0}
        return finish_stage(folder, product.state_dict(), record)
    teacher_network, settings = frozen_teacher(experiment, model, normalize), chosen(section, ParaphraserTraining)
    method = ParaphraserTraining(teacher_network, taps, list(paraphrasers.values()), **settings)
    if experiment.views is not None:
        method.cached = Cache(experiment, teacher, experiment.views).features()
    return train_one(StageTraining(experiment, folder, section, method, product, record, stage="paraphraser"))


def paraphraser_provenance(experiment: Experiment, teacher: Artefact) -> dict[str, Any]:
    """The inputs of the paraphraser stage."""
    section = experiment.recipe.paraphraser
    assert section is not None
    inputs = training_provenance(experiment, section, paraphraser=section) | unlabelled_provenance(experiment)
    if section.epochs is None:
        inputs["paraphraser"] = chosen(section, Paraphraser) | weights_provenance(section)
    tap = ", ".join(experiment.taps[0])
    return {**inputs, **frozen_provenance(experiment), "tap": tap, "teacher": teacher.fingerprint}


def require_paraphraser(experiment: Experiment, teacher: Artefact) -> Artefact:
    """The finished paraphraser stage of a teacher.

    Raises:
        InputError: if the paraphraser is missing, or was trained with other inputs than this recipe's.
    """
    return find_stage(experiment, "paraphraser", "pretrain", lambda: paraphraser_provenance(experiment, teacher))


def new_paraphrasers(experiment: Experiment, teacher: nn.Module, normalize: Normalize) -> dict[str, Paraphraser]:
    """Build the recipe's paraphraser for each of the teacher's taps, with random weights, on the device.

    Args:
        experiment: the experiment.
        teacher: the teacher: images (B, C, H, W) -> logits (B, K).
        normalize: the module that turns raw images into the teacher's input.

    Returns:
        The paraphrasers by tap.

    Raises:
        InputError: if ``teacher.tap`` names a tap twice.
    """
    images = normalize(experiment.examples[:2])
    section = experiment.recipe.paraphraser
    assert section is not None
    if len(set(experiment.taps[0])) < len(experiment.taps[0]):
        raise InputError(f"teacher.tap names a tap twice: {', '.join(experiment.taps[0])}; name each tap once")
    arguments, device = chosen(section, Paraphraser), experiment.fabric.device
    return {
        tap: Paraphraser(feature_shape(teacher, tap, images)[0], **arguments).to(device) for tap in experiment.taps[0]
    }


def as_product(paraphrasers: Mapping[str, Paraphraser]) -> nn.Module:
    """The module whose weights are saved: the paraphraser, or a ``ModuleList`` of them if there are several taps."""
    modules = list(paraphrasers.values())
    return modules[0] if len(modules) == 1 else nn.ModuleList(modules)


def load_paraphrasers(experiment: Experiment, done: Artefact) -> dict[str, Paraphraser]:
    """Load the paraphrasers of a finished stage, by tap, on the device."""
    section = experiment.recipe.paraphraser
    assert section is not None
    arguments = chosen(section, Paraphraser)
    paraphrasers = {
        tap: Paraphraser(channels, **arguments).to(experiment.fabric.device)
        for tap, channels in done.record["in_channels"].items()
    }
    load_into(as_product(paraphrasers), done.state(), done.weights)
    return paraphrasers
