"""The results of a run: figures on the test images, and the table that is printed."""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from factor_transfer.config.recipe import ALONE
from factor_transfer.models import macs, parameters
from factor_transfer.pipeline.artefact import LAST, Artefact
from factor_transfer.pipeline.experiment import Experiment, program
from factor_transfer.report.names import name_of
from factor_transfer.training.evaluate import top
from factor_transfer.training.log import describe


def network_figures(experiment: Experiment, done: Artefact) -> dict[str, Any]:
    """The accuracy of a finished network on the test images, and its costs.

    Args:
        experiment: the experiment.
        done: the finished stage of the network.

    Returns:
        ``top1`` and ``top5`` in percent, of the delivered weights; that top-1 again as ``top1_kept``, and that of the
        last epoch as ``top1_last``; the number of ``parameters``, the ``macs`` per image, the ``bytes``, the
        path and the SHA-256 of the ``weights`` file.
    """
    model = experiment.load(done)
    split = experiment.test
    figures = top(*experiment.test_logits(done))
    # Without a file of the last epoch, the delivered weights are those of the last epoch.
    last = figures if done.record.get("last_sha256") is None else top(*experiment.test_logits(done, last=True))
    example = torch.zeros(1, *split.images.shape[1:], device=experiment.fabric.device)
    return {
        "top1": figures["top1"],
        "top5": figures["top5"],
        "top1_kept": figures["top1"],
        "top1_last": last["top1"],
        "parameters": parameters(model),
        "macs": macs(model, example),
        "bytes": done.weights.stat().st_size,
        "weights": str(done.weights),
        "weights_sha256": done.record["weights_sha256"],
    }


def print_results(console: Console, summaries: Sequence[Mapping[str, Any]], test_images: int) -> None:
    """Print the results of one or more runs: teacher, student alone and student with its method, and their weights.

    Args:
        console: the console to print on.
        summaries: the content of ``summary.json`` of each run; they differ in the seed.
        test_images: the number of test images.
    """
    runs = f" over {len(summaries)} seeds, mean ± standard deviation" if len(summaries) > 1 else ""
    table = Table(box=box.MARKDOWN)
    table.add_column("")
    for heading in ("parameters", "MACs", "file", "top-1 %"):
        table.add_column(heading, justify="right")
    locations, differ = [], False
    method = summaries[0]["method"]
    student = name_of(method) if method == ALONE else f"student, {name_of(method)}"
    for key, name in {"teacher": "teacher", "baseline": name_of(ALONE), "student": student}.items():
        rows = [summary[key] for summary in summaries if summary[key] is not None]
        if rows:
            first = rows[0]
            size = f"{first['bytes'] / 1000:,.0f} kB"
            top1 = spread([row["top1"] for row in rows])
            table.add_row(name, f"{first['parameters']:,}", f"{first['macs']:,}", size, top1)
            differ = differ or any(row.get("top1_last", row["top1"]) != row["top1"] for row in rows)
            locations.append(f"{name}: {_pattern([row['weights'] for row in rows])}")
    console.print(table)
    console.print(f"Top-1 on {test_images:,} test images{runs}. The weights:", highlight=False, soft_wrap=True)
    for location in locations:
        console.print(f"  {location}", highlight=False, markup=False, soft_wrap=True)
    if differ:
        console.print(
            f"They are those of the epoch that validation chose (top1_kept in summary.json); {LAST} beside them, where "
            "there is one, has those of the last epoch (top1_last).",
            highlight=False,
            soft_wrap=True,
        )


def _pattern(paths: Sequence[str]) -> str:
    """One pattern for several paths, with an asterisk for the end of each part that differs."""
    parts = zip(*[Path(path).parts for path in paths], strict=True)
    return str(Path(*[part[0] if len(set(part)) == 1 else os.path.commonprefix(part) + "*" for part in parts]))  # noqa: RUF071 (strings it is)


def stage_lines(done: Artefact, following: Sequence[tuple[str, str]]) -> list[str]:
    """The validation results of a finished stage, if there are any, and the next commands, in lines.

    Args:
        done: the stage.
        following: see ``next_lines``.
    """
    reached = {f"validation_{key}": value for key, value in (done.record.get("validation") or {}).items()}
    figures = describe(reached)
    return [*([f"{done.folder.name}  {figures}"] if figures else []), *next_lines(following)]


def next_lines(following: Sequence[tuple[str, str]]) -> list[str]:
    """The next commands or files, in lines.

    Args:
        following: commands or files, each with a short description.
    """
    width = max(len(step) for step, _ in following) + 4
    return ["", "Next:", *(f"  {step:<{width}}{words}".rstrip() for step, words in following)]


def after_teacher(experiment: Experiment) -> list[tuple[str, str]]:
    """The next command after ``teacher``."""
    if experiment.recipe.needs_paraphraser:
        return [(f"{program()} pretrain {experiment.command}", "the paraphraser, on this teacher's features")]
    return after_paraphraser(experiment)


def after_paraphraser(experiment: Experiment) -> list[tuple[str, str]]:
    """The next command after ``pretrain``."""
    return [(f"{program()} train {experiment.command}", "the student")]


def after_student(done: Artefact) -> list[tuple[str, str]]:
    """The next commands after ``train``."""
    folder = shlex.quote(str(done.folder))
    return [(f"{program()} test {folder}", "its accuracy on the test images"), *_in_use(folder)]


def after_run(experiment: Experiment) -> list[tuple[str, str]]:
    """The next commands after ``run``, and its report."""
    page = experiment.work_dir / "report.html"
    steps = _in_use(shlex.quote(str(experiment.work_dir)))
    return [*steps, (str(page), "all of it on one page, for a browser")] if page.is_file() else steps


def _in_use(place: str) -> list[tuple[str, str]]:
    return [
        (f"{program()} export {place}", "the student as a file for a device"),
        (f"{program()} predict {place} PICTURE", "its classes for a picture"),
    ]


def spread(values: Sequence[float]) -> str:
    """The mean ± sample standard deviation of several values, or a single value."""
    return f"{mean(values):.2f} ± {stdev(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"
