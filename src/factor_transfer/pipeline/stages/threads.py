"""The number of threads of a training on a CPU: given or measured, recorded, and the same when it is resumed."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from factor_transfer.data import Batch
from factor_transfer.distributed.threads import fastest, is_choice_free, measure_threads
from factor_transfer.methods import Method, load_trained_state, trained_state
from factor_transfer.pipeline import artefact
from factor_transfer.pipeline.experiment import Experiment

# Trainings that take less time, in seconds, keep all threads: the measurement would not pay.
_LEAST_S = 20.0
# A step that takes longer, in seconds, is measured on fewer images.
_STEP_S = 0.3
_STEPS = 2


@contextmanager
def with_threads(
    experiment: Experiment, folders: Sequence[Path], method: Method, labels: Tensor, images: int, steps: int
) -> Iterator[None]:
    """A context in which PyTorch has the number of threads that is best for the training of a stage.

    It is, in this order: the number that the recipe gives; the number that an unfinished stage was trained with until
    now; and the number with which a few steps are fastest. Steps are not measured if the choice is not free (one core,
    ``OMP_NUM_THREADS``, the processes of a comparison), or if the training is short. Trainings on a GPU or in several
    processes keep the number that they have.

    Args:
        experiment: the experiment.
        folders: the folders of the stages that are trained together; the number is recorded in each ``stage.json``.
        method: the method that is measured. Its state, and that of the random number generator, stay as they are.
        labels: the labels of the training images, int64 (N,).
        images: the number of images of a step.
        steps: the number of steps of the training.
    """
    before = torch.get_num_threads()
    if experiment.fabric.device.type != "cpu" or experiment.fabric.world_size > 1:
        yield
        return
    given = experiment.recipe.threads
    if given == "auto":
        recorded = [count for folder in folders if (count := artefact.recorded_threads(folder)) is not None]
        if recorded:
            chosen = recorded[0]
            if chosen != before:
                experiment.say(f"{folders[0].name}  {chosen} threads, as until now")
        elif experiment.threads_are_set or not is_choice_free():
            chosen = before
        else:
            chosen = _measured(experiment, folders[-1].name, method, labels, images, steps)
    else:
        chosen = given
    for folder in folders:
        artefact.record_threads(folder, chosen)
    torch.set_num_threads(chosen)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measured(experiment: Experiment, name: str, method: Method, labels: Tensor, images: int, steps: int) -> int:
    """The number of threads with which a step is fastest, measured without a lasting effect on the method."""
    state = {key: value.clone() for key, value in trained_state(method).items()}
    method.train()

    def seconds(count: int) -> float:
        batch = _batch(experiment, labels, count)
        began = time.perf_counter()
        with experiment.fabric.autocast():
            loss = method(*batch)["loss"]
        loss.backward()
        return time.perf_counter() - began

    all_threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        try:
            first = seconds(images)  # also a warm-up
            if first * steps < _LEAST_S:
                return all_threads
            some = images if first < _STEP_S else max(2, int(images * _STEP_S / first))
            found = measure_threads(lambda: min(seconds(some) for _ in range(_STEPS)))
        except (RuntimeError, MemoryError):  # the training will fail as well, with a better message
            return all_threads
        finally:
            load_trained_state(method, state)
            method.zero_grad()
    chosen = fastest(found)
    times = ", ".join(f"{duration:.2g} s with {count}" for count, duration in found.items())
    experiment.say(f"{name}  {chosen} of {all_threads} threads: a step of {some} images takes {times}")
    return chosen


def _batch(experiment: Experiment, labels: Tensor, count: int) -> Batch:
    """A batch for a measurement, without augmentation. Its images and labels do not belong together."""
    indices, examples = torch.arange(count), experiment.examples
    views = None if experiment.views is None else torch.zeros_like(indices)
    return Batch(examples[indices % len(examples)], labels[:count], indices, views)
