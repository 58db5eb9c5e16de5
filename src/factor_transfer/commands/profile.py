"""Estimates of the time and memory that the stages of a recipe need, from a few training steps of each."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from factor_transfer.config.recipe import Training
from factor_transfer.data import Batch
from factor_transfer.methods import Method, Paraphraser, ParaphraserTraining, Supervised
from factor_transfer.models import Normalize, state_bytes
from factor_transfer.pipeline import artefact
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.pipeline.experiment import Experiment, Stage
from factor_transfer.pipeline.stages.finetune import finetune_section
from factor_transfer.pipeline.stages.paraphraser import load_paraphrasers, new_paraphrasers, paraphraser_provenance
from factor_transfer.pipeline.stages.teacher import frozen_teacher, teacher_provenance
from factor_transfer.pipeline.weights.initial import init_network
from factor_transfer.settings import chosen
from factor_transfer.training.optim import Optimization

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_STEP_S = 1.0  # the longest duration of a measured step; slower networks are measured on fewer images
_PROBE = 4  # the number of images in the first step, which also serves as a warm-up
_STEPS = 2


@dataclass
class Networks:
    """The networks of a recipe as they are now: those of finished stages, or else the initial ones.

    Attributes:
        teacher: the teacher.
        student: the student.
        of_teacher: the normalisation of the teacher's input.
        of_student: the normalisation of the student's input.
        paraphrasers: the paraphrasers by tap; empty if the method needs none.
        done: the finished stage of the teacher, if it is up to date.
        pretrained: the finished stage of the paraphraser, if it is up to date.
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
    """The estimated cost of a stage.

    Attributes:
        seconds: the duration of all steps, without validation and start-up.
        memory_mb: the size of weights, gradients, optimiser state and the tensors saved for a backward pass, in MB.
        images_per_s: the number of training images per second.
    """

    seconds: float
    memory_mb: float
    images_per_s: float


def measure_stages(experiment: Experiment, networks: Networks, method: Method) -> dict[str, Budget]:
    """Measure the time and memory of each stage that is trained, and return them by name.

    New teachers and paraphrasers are built for the measurement, since those in ``networks`` are frozen.

    Args:
        experiment: the experiment.
        networks: the networks of the experiment.
        method: the method that trains the student. Its weights are changed.
    """
    recipe, found = experiment.recipe, {}
    if recipe.teacher.epochs is not None:
        supervised = Supervised(experiment.build(recipe.teacher), networks.of_teacher)
        found["teacher"] = measure_stage(experiment, supervised, "teacher")
    if networks.paraphrasers and recipe.paraphraser and recipe.paraphraser.epochs is not None:
        paraphrasers = new_paraphrasers(experiment, networks.teacher, networks.of_teacher)
        distance = chosen(recipe.paraphraser, ParaphraserTraining)
        teacher = frozen_teacher(experiment, networks.teacher, networks.of_teacher)
        training = ParaphraserTraining(teacher, list(paraphrasers), list(paraphrasers.values()), **distance)
        found["paraphraser"] = measure_stage(experiment, training, "paraphraser")
    found["student"] = measure_stage(experiment, method, "student")
    if recipe.student.finetune is not None:
        supervised = Supervised(experiment.build(recipe.student), networks.of_student)
        found["finetune"] = measure_stage(experiment, supervised, "finetune")
    return found


def measure_stage(experiment: Experiment, method: Method, stage: Stage) -> Budget:
    """Measure the time and memory of one stage.

    Args:
        experiment: the experiment.
        method: the method that trains the stage. Its weights are changed.
        stage: the stage.
    """
    student = experiment.recipe.student
    section: Training = finetune_section(student) if stage == "finetune" else getattr(experiment.recipe, stage)
    assert section.epochs is not None
    batches = experiment.batches(stage, has_terms=not isinstance(method, Supervised))
    batch, steps = next(batches.epoch(0)), section.epochs * max(1, len(batches))
    return measure_training(experiment.fabric, method, batch, section.optimization, steps)


def _finished(experiment: Experiment, name: str, inputs: Mapping[str, Any]) -> Artefact | None:
    """The finished stage of this name, if it is up to date."""
    folder = experiment.work_dir / name
    done = artefact.find(folder)
    return done if done and not artefact.differences(folder, inputs) else None


def measure_training(fabric: "Fabric", method: Method, batch: Batch, optimization: Optimization, steps: int) -> Budget:
    """Time a few steps of a training, and count the memory of the tensors that they save.

    Args:
        fabric: the device and the precision.
        method: the method to train. Its weights are changed.
        batch: a batch of the training.
        optimization: the settings of the optimiser.
        steps: the number of steps of the whole training.
    """
    parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
    optimizer, _ = optimization.build(parameters, 1, 1)
    saved: dict[int, int] = {}
    weights_storage = {value.untyped_storage().data_ptr() for value in method.state_dict().values()}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights_storage:  # weights are counted below, once for any batch size
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    def step(part: Batch) -> float:
        saved.clear()
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
    if images > few:  # separates the time per image from the constant time of a step, such as that of the optimiser
        longer = min(step(first_of(batch, images)) for _ in range(_STEPS if seconds < _STEP_S else 1))
        seconds = longer + max(longer - seconds, 0.0) / (images - few) * (whole - images)
    weights = state_bytes(method)
    state = sum(
        value.nbytes for values in optimizer.state.values() for value in values.values() if isinstance(value, Tensor)
    )
    gradients = sum(parameter.nbytes for parameter in parameters)
    memory = weights + state + gradients + sum(saved.values()) * whole / images
    return Budget(steps * seconds, memory / 1e6, whole / seconds)


def first_of(batch: Batch, count: int) -> Batch:
    """The first ``count`` images of a batch."""
    return batch.select(slice(count))
