"""What the trainings of a recipe cost: seconds and memory, from a few steps of each."""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from factor_transfer.config.recipe import Training
from factor_transfer.data import Batch, Batches
from factor_transfer.methods import Method, Paraphraser, ParaphraserTraining, Supervised
from factor_transfer.models import Normalize
from factor_transfer.pipeline import artefact
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.stages.paraphraser import load_paraphrasers, new_paraphrasers, paraphraser_provenance
from factor_transfer.pipeline.stages.teacher import frozen_teacher, teacher_provenance
from factor_transfer.pipeline.weights.initial import init_network
from factor_transfer.settings import chosen
from factor_transfer.training.optim import Optimization

_STEP_S = 1.0  # a measured step should take no longer; if need be, it is one of fewer images
_PROBE = 4  # images of the first step, which also warms up
_STEPS = 2


@dataclass
class Networks:
    """The networks of a recipe as they are now: those of finished stages, or such as the stages would start from.

    Attributes:
        teacher: the teacher.
        student: the student.
        of_teacher: the normalisation of the teacher's input.
        of_student: the normalisation of the student's input.
        paraphrasers: by tap; empty where the method needs none.
        done: the teacher's stage, if it is up to date.
        pretrained: the paraphraser's stage, if it is up to date.
    """

    teacher: nn.Module
    student: nn.Module
    of_teacher: Normalize
    of_student: Normalize
    paraphrasers: dict[str, Paraphraser]
    done: Artefact | None
    pretrained: Artefact | None


def networks_now(experiment: Experiment) -> Networks:
    """The networks of an experiment, trained or not."""
    recipe = experiment.recipe
    done = _finished(experiment, "teacher", teacher_provenance(experiment))
    if done:
        teacher, record = experiment.load(done), done.record
    else:
        teacher, record = init_network(experiment, "teacher", recipe.teacher)
    of_teacher = experiment.normalize((record["mean"], record["std"]))
    student, record = init_network(experiment, "student", recipe.student)
    of_student = experiment.normalize((record["mean"], record["std"]))
    paraphrasers: dict[str, Paraphraser] = {}
    pretrained: Artefact | None = None
    if recipe.needs_paraphraser:
        pretrained = _finished(experiment, "paraphraser", paraphraser_provenance(experiment, done)) if done else None
        if pretrained:
            paraphrasers = load_paraphrasers(experiment, pretrained)
        else:
            paraphrasers = new_paraphrasers(experiment, teacher, of_teacher)
    return Networks(teacher, student, of_teacher, of_student, paraphrasers, done, pretrained)


class Budget(NamedTuple):
    """An estimate.

    Attributes:
        seconds: of all steps; validation and start-up come on top.
        memory_mb: weights, gradients, the optimiser's state, and what one step keeps for its backward pass.
        images_per_s: of a step.
    """

    seconds: float
    memory_mb: float
    images_per_s: float


def measure_stages(experiment: Experiment, networks: Networks, method: Method) -> dict[str, Budget]:
    """Time and memory of each stage that is trained, by name.

    Teacher and paraphraser are measured on new ones, since those at hand are frozen.

    Args:
        experiment: the experiment.
        networks: its networks.
        method: what trains the student. Its weights are left changed.
    """
    recipe, found = experiment.recipe, {}
    if recipe.teacher.epochs is not None:
        anew = Supervised(experiment.build(recipe.teacher), networks.of_teacher)
        found["teacher"] = measure_stage(experiment, anew, recipe.teacher)
    if networks.paraphrasers and recipe.paraphraser and recipe.paraphraser.epochs is not None:
        paraphrasers = new_paraphrasers(experiment, networks.teacher, networks.of_teacher)
        distance = chosen(recipe.paraphraser, ParaphraserTraining)
        teacher = frozen_teacher(experiment, networks.teacher, networks.of_teacher)
        training = ParaphraserTraining(teacher, list(paraphrasers), list(paraphrasers.values()), **distance)
        found["paraphraser"] = measure_stage(experiment, training, recipe.paraphraser)
    found["student"] = measure_stage(experiment, method, recipe.student)
    return found


def measure_stage(experiment: Experiment, method: Method, section: Training) -> Budget:
    """Time and memory of one stage, trained as a section of the recipe says."""
    assert section.epochs is not None
    steps = section.epochs * max(1, math.ceil(len(experiment.data.train) / section.batch_size))
    batch = next(training_batches(experiment, section))
    return measure_training(experiment.fabric, method, batch, section.optimization, steps)


def training_batches(experiment: Experiment, section: Training) -> Iterator[Batch]:
    """The batches of a stage's first epoch."""
    data, device = experiment.data, experiment.fabric.device
    return Batches(data.train, section.batch_size, section.seed, experiment.augment, device).epoch(0)


def _finished(experiment: Experiment, name: str, inputs: Mapping[str, Any]) -> Artefact | None:
    """A stage, if it is up to date."""
    folder = experiment.work_dir / name
    done = artefact.find(folder)
    return done if done and not artefact.differences(folder, inputs) else None


def measure_training(fabric: Fabric, method: Method, batch: Batch, optimization: Optimization, steps: int) -> Budget:
    """Time a few steps of a training, and count what they keep.

    Args:
        fabric: device and precision.
        method: what is trained. Its weights are left changed.
        batch: one of the training's.
        optimization: how it is trained.
        steps: of the whole training.
    """
    parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
    optimizer, _ = optimization.build(parameters, 1, 1)
    kept: dict[int, int] = {}
    lasting = {value.untyped_storage().data_ptr() for value in method.state_dict().values()}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in lasting:  # weights are kept anyway, and are no more for more images
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def step(part: Batch) -> float:
        kept.clear()
        began = time.perf_counter()
        with fabric.autocast(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = method(*part)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if fabric.device.type == "cuda":
            torch.cuda.synchronize(fabric.device)
        return time.perf_counter() - began

    method.train()
    whole = len(batch.labels)
    few = min(_PROBE, whole)
    step(first_of(batch, few))
    seconds = step(first_of(batch, few))
    images = min(whole, max(2 * _PROBE, int(_PROBE * _STEP_S / seconds)))
    if images > few:  # what images take, and what the step takes besides, such as moving the weights
        longer = min(step(first_of(batch, images)) for _ in range(_STEPS if seconds < _STEP_S else 1))
        seconds = longer + max(longer - seconds, 0.0) / (images - few) * (whole - images)
    weights = sum(value.nbytes for value in method.state_dict().values())
    state = sum(
        value.nbytes for values in optimizer.state.values() for value in values.values() if isinstance(value, Tensor)
    )
    gradients = sum(parameter.nbytes for parameter in parameters)
    memory = weights + state + gradients + sum(kept.values()) * whole / images
    return Budget(steps * seconds, memory / 1e6, whole / seconds)


def first_of(batch: Batch, count: int) -> Batch:
    """The first so many images of a batch."""
    return Batch(*(None if part is None else part[:count] for part in batch))  # type: ignore[arg-type]
