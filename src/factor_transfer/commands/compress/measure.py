"""Measurement of the costs of a training on this device, from a few steps per stage and a trial export."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from torch import nn

from factor_transfer.commands.compress.look import Pictures, unread
from factor_transfer.commands.compress.schedule import Costs
from factor_transfer.commands.profile import Budget, measure_stage, measure_stages, networks_now
from factor_transfer.config.read import read_recipe, toml_value
from factor_transfer.methods import Supervised
from factor_transfer.models import Normalize, parameters, state_bytes
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.stages.student import build_student_method
from factor_transfer.pipeline.stages.teacher import frozen_teacher

_LOOP = 1.1  # the time of a training relative to that of its steps; the rest is for batches and figures
_EPOCH_S = 0.1  # the time for the checkpoint of an epoch
_FORWARD = 1 / 3  # the time of a forward pass relative to that of a step
_FILES = 3  # the time of all exports relative to that of one student: the student's and the larger teacher's
_TESTING_S, _REPORT_S, _START_S = 8.0, 20.0, 5.0
_PROCESS_MB, _REPORT_MB = 600.0, 3.0


class Exporter(Protocol):
    """The interface to export a student to a file for a device."""

    @property
    def extra(self) -> str:
        """The extra of this package that it needs, such as ``"onnx"``."""

    def try_on(self, experiment: Experiment, network: nn.Module, normalize: Normalize) -> None:
        """Export an untrained student, and discard the file.

        Raises:
            InputError: this kind of student cannot be exported.
        """

    def export(self, experiment: Experiment) -> tuple[Path, dict[str, Any]]:
        """Export the student unless its file is up to date, and return the file and the content of ``export.json``.

        Raises:
            InputError: the file is not accurate enough.
        """


@dataclass(frozen=True)
class Measured:
    """The results of a measurement.

    Attributes:
        costs: the costs of the stages.
        teacher: the number of the teacher's parameters.
        student: the number of the student's parameters.
    """

    costs: Costs
    teacher: int
    student: int


def measure(draft: str, pictures: Pictures, exporter: Exporter | None) -> Measured:
    """Run a few steps of each stage of a recipe, and measure what an epoch costs.

    Args:
        draft: a recipe with one epoch of each stage.
        pictures: the folder of pictures.
        exporter: the exporter of the student, if it is exported.

    Raises:
        InputError: a network or term does not fit, or the student cannot be exported.
    """
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "draft.toml"
        path.write_text(draft, encoding="utf-8")
        recipe = read_recipe(
            path, [f"data.{key}={toml_value(value)}" for key, value in unread(pictures.channels).items()]
        )
        experiment = Experiment(recipe, Path(place) / "work", Console(quiet=True), str(path))
        networks = networks_now(experiment)
        exporting_s = 0.0
        if exporter is not None:
            began = time.perf_counter()
            exporter.try_on(experiment, networks.student, networks.of_student)
            exporting_s = _FILES * (time.perf_counter() - began)
        teacher = frozen_teacher(experiment, networks.teacher, networks.of_teacher)
        method = build_student_method(experiment, networks.student, networks.of_student, teacher, networks.paraphrasers)
        budgets = measure_stages(experiment, networks, method)
        alone = Supervised(experiment.build(recipe.student), networks.of_student)
        budgets["alone"] = measure_stage(experiment, alone, "student")
        validation = len(experiment.data.validation)
    decoding_s = (pictures.count + validation) * pictures.decoding_s
    in_memory = pictures.in_memory(recipe.data.size)  # type: ignore[attr-defined]
    # Images in memory are decoded once; images on disk are decoded in each epoch, in parallel with the steps.
    per_epoch_s = 0.0 if in_memory else decoding_s

    def epoch_s(name: str) -> float:
        budget = budgets.get(name)
        if budget is None:
            return 0.0
        images = pictures.training + (pictures.unlabelled if name != "teacher" else 0)
        with_validation = 1 + _FORWARD * validation / images
        return max(_LOOP * with_validation * budget.seconds, per_epoch_s) + _EPOCH_S

    tests_s = sum(pictures.test * _FORWARD / budget.images_per_s for budget in budgets.values())
    once_s = _START_S + decoding_s + tests_s + _REPORT_S + (exporting_s + _TESTING_S if exporter is not None else 0.0)
    sizes = {
        name: state_bytes(model) / 1e6
        for name, model in (("teacher", networks.teacher), ("student", networks.student), ("method", method))
    }
    images_mb = pictures.count * pictures.channels * recipe.data.size**2 / 1e6  # type: ignore[attr-defined]
    costs = Costs(
        epoch_s("teacher"),
        epoch_s("paraphraser"),
        epoch_s("student"),
        epoch_s("alone"),
        once_s,
        max(budget.memory_mb for budget in budgets.values()) + _PROCESS_MB + (images_mb if in_memory else 0.0),
        _disk_mb(sizes["teacher"], sizes["student"], sizes["method"], budgets),
    )
    return Measured(costs, parameters(networks.teacher), parameters(networks.student))


def _disk_mb(teacher: float, student: float, method: float, budgets: dict[str, Budget]) -> float:
    """The size of weights and exported files, and of two checkpoints of the largest stage, in megabytes."""
    largest = max(teacher if "teacher" in budgets else 0.0, method)
    return 2 * teacher + 3 * student + method + 6 * largest + _REPORT_MB
