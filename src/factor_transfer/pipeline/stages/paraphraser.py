"""Stage 2, connectors pre-training: the paraphraser learns to reconstruct the teacher's feature."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from factor_transfer.errors import InputError
from factor_transfer.files import load_into
from factor_transfer.methods import Paraphraser, ParaphraserTraining
from factor_transfer.models import Normalize, parameters
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.provenance import frozen_provenance, training_provenance, weights_provenance
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
from factor_transfer.taps.stages import feature_shape


@in_work_dir
def make_paraphraser(experiment: Experiment, fresh: bool = False) -> Artefact:
    """Train the paraphraser on the finished teacher's features, or take the weights that the recipe names.

    Args:
        experiment: the recipe in its work dir.
        fresh: train it anew even if it is up to date.
    """
    section = experiment.recipe.paraphraser
    if section is None:
        raise InputError("the recipe says nothing of a paraphraser; add [paraphraser] to it")
    if not experiment.taps[0]:
        raise InputError("no feature map was found in the teacher; name one as teacher.tap")
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
    several, distance = list(paraphrasers.values()), chosen(section, ParaphraserTraining)
    method = ParaphraserTraining(frozen_teacher(experiment, model, normalize), taps, several, **distance)
    if experiment.views is not None:
        method.cached = Cache(experiment, teacher, experiment.views).features()
    return train_one(StageTraining(experiment, folder, section, method, product, record), experiment.views)


def paraphraser_provenance(experiment: Experiment, teacher: Artefact) -> dict[str, Any]:
    """What the paraphraser is made from."""
    section = experiment.recipe.paraphraser
    assert section is not None
    made_from = training_provenance(experiment, section, paraphraser=section)
    if section.epochs is None:
        made_from["paraphraser"] = chosen(section, Paraphraser) | weights_provenance(section)
    tap = ", ".join(experiment.taps[0])
    return {**made_from, **frozen_provenance(experiment), "tap": tap, "teacher": teacher.fingerprint}


def require_paraphraser(experiment: Experiment, teacher: Artefact) -> Artefact:
    """The finished paraphraser of a teacher.

    Raises:
        InputError: it is missing, or another one than this recipe's.
    """
    return find_stage(experiment, "paraphraser", "pretrain", lambda: paraphraser_provenance(experiment, teacher))


def new_paraphrasers(experiment: Experiment, teacher: nn.Module, normalize: Normalize) -> dict[str, Paraphraser]:
    """One for each of the teacher's taps, as the recipe describes it, with random weights, on the device."""
    images = normalize(experiment.examples[:2])
    section = experiment.recipe.paraphraser
    assert section is not None
    if len(set(experiment.taps[0])) < len(experiment.taps[0]):
        raise InputError(f"teacher.tap names a tap twice: {', '.join(experiment.taps[0])}; give each once")
    arguments, device = chosen(section, Paraphraser), experiment.fabric.device
    return {
        tap: Paraphraser(feature_shape(teacher, tap, images)[0], **arguments).to(device) for tap in experiment.taps[0]
    }


def as_product(paraphrasers: Mapping[str, Paraphraser]) -> nn.Module:
    """What a stage's weights hold: the paraphraser, or a list of them where there are several taps."""
    several = list(paraphrasers.values())
    return several[0] if len(several) == 1 else nn.ModuleList(several)


def load_paraphrasers(experiment: Experiment, done: Artefact) -> dict[str, Paraphraser]:
    """The paraphrasers of a finished stage, by tap, on the device."""
    section = experiment.recipe.paraphraser
    assert section is not None
    arguments = chosen(section, Paraphraser)
    paraphrasers = {
        tap: Paraphraser(channels, **arguments).to(experiment.fabric.device)
        for tap, channels in done.record["in_channels"].items()
    }
    load_into(as_product(paraphrasers), done.state(), done.weights)
    return paraphrasers
