"""The command ``demo``: a small comparison on the part of Fashion-MNIST that is in the package."""

from pathlib import Path
from typing import Any

from rich.console import Console

from factor_transfer.commands.compare import compare
from factor_transfer.commands.jobs import ProcessJobs, default_jobs
from factor_transfer.config.read import read_recipe
from factor_transfer.models import parameters
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.report.comparison import print_comparison
from factor_transfer.report.confidence import as_estimate
from factor_transfer.report.html.write import REPORT
from factor_transfer.report.results import next_lines

RECIPE = "fashion-mnist/resnet20-resnet8"
METHODS = ("student", "kd", "factor", "factor+kd")
SEEDS = 5


def demo(work_dir: Path, console: Console) -> dict[str, Any]:
    """Compare Factor Transfer with KD and with the student alone, over five seeds, in two to three minutes.

    Returns:
        The comparison, see ``compare``; it is also written to ``comparison.json`` in the work dir.
    """
    experiment = Experiment(read_recipe(RECIPE), work_dir, console, f"{RECIPE} --work-dir {work_dir}")
    # One process of one thread where there is one processor, so that all machines compute the same bytes.
    runner = ProcessJobs(default_jobs(experiment))
    comparison = compare(experiment, METHODS, SEEDS, runner)
    print_comparison(console, comparison, len(experiment.test), SEEDS)
    teacher, student = experiment.build(experiment.recipe.teacher), experiment.build(experiment.recipe.student)
    for line in _summary(comparison, work_dir, parameters(teacher), parameters(student)):
        experiment.say(line)
    return comparison


def _summary(comparison: dict[str, Any], work_dir: Path, teacher: int, student: int) -> list[str]:
    """The gain, its cost, and the next commands, in lines."""
    factor = comparison["methods"]["factor"]
    difference = as_estimate(factor, "difference")
    lines = [""]
    if difference is not None and factor["cost"] is not None:
        closed = "" if factor["gap_closed"] is None else f", {factor['gap_closed']:.0%} of the gap to the teacher"
        lines += [
            f"Factor Transfer changes the student's top-1 by {difference:+.2f} points (95 % interval){closed}. Its "
            f"training takes {factor['cost']:.2f} times as long as the student's alone. What is delivered is the same "
            f"network: {student:,} parameters, where the teacher has {teacher:,}.",
        ]
    student_dir = work_dir / "student-factor-seed0"
    steps = [
        (f"factor-transfer export {student_dir} --format onnx", "the student as a file for a device"),
        (f"factor-transfer predict {student_dir} PICTURE", "its classes for a picture"),
        (str(work_dir / REPORT), "all of it on one page, for a browser"),
        ("factor-transfer compress PICTURES", "the same with your own pictures"),
    ]
    return [*lines, *next_lines(steps)]
