"""The steps of ``compress`` and ``init``: plan, recipe, training, export and report."""

import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from factor_transfer.commands.compress.measure import Exporter
from factor_transfer.commands.compress.plan import Plan, Request, make_plan, run_command
from factor_transfer.commands.compress.recipe_file import read_written, recipe_name
from factor_transfer.commands.run import run
from factor_transfer.config.read import read_recipe
from factor_transfer.distributed.device import find_device
from factor_transfer.distributed.threads import convolutions, fastest, is_choice_free, measure_threads
from factor_transfer.errors import InputError
from factor_transfer.files import write_atomic
from factor_transfer.models.optional import pip_install
from factor_transfer.pipeline import artefact
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.lock import hold
from factor_transfer.pipeline.stages.student import preflight
from factor_transfer.pipeline.stages.teacher import make_teacher
from factor_transfer.pipeline.weights.initial import check_networks
from factor_transfer.report.html.write import try_report
from factor_transfer.report.results import next_lines
from factor_transfer.training.log import Display

RECIPE = "compress.toml"
_MEASURING = "reading {} and measuring how fast this device trains; this takes up to a minute"


@dataclass(frozen=True)
class Compressed:
    """The results of ``compress``.

    Attributes:
        experiment: the experiment that was run.
        summary: the figures of the networks, see ``commands.run.run``.
        file: the exported file, if there is one.
        export: the content of ``export.json``, if there is a file.
        export_error: the error of the export, if it failed.
        report: the path of ``report.html``, if it could be written.
    """

    experiment: Experiment
    summary: dict[str, Any]
    file: Path | None
    export: dict[str, Any] | None
    export_error: InputError | None
    report: Path | None


def init(request: Request, out: Path | None, exporter: Exporter | None, console: Console) -> list[str]:
    """Write the recipe of a folder of pictures, without training.

    Args:
        request: the options of the command.
        out: the file of the recipe; by default, ``<name of the pictures' folder>.toml`` in the working directory.
        exporter: the exporter of the student, if it is exported; its time is part of the plan.
        console: the console that shows the progress.

    Returns:
        The lines to print at the end, with the next command.

    Raises:
        InputError: the file exists and is not as ``init`` wrote it, or ``make_plan`` fails.
    """
    began, display = time.perf_counter(), Display(console)
    request.check()
    path = out or Path(f"{recipe_name(request.pictures)}.toml")
    written = read_written(path)
    if path.is_dir():
        raise InputError(f"--out {path} is a folder; give the name of a file, such as {path / RECIPE}")
    if written is not None and written.edited:
        raise InputError(f"{path} exists, and was changed or not written by init; give another file with --out")
    _settle_threads(display)
    display.say(_MEASURING.format(request.pictures))
    plan = make_plan(request, run_command(path), exporter, began)
    write_atomic(path, plan.text.encode())
    for line in plan.lines:
        display.say(line)
    return ["", f"wrote {path}", *next_lines([(run_command(path), "train with it")])]


def compress(request: Request, out: Path | None, exporter: Exporter | None, console: Console) -> Compressed:
    """Choose what to train, train it, export the student, and write the report.

    Args:
        request: the options of the command.
        out: the folder of the recipe and the results; ``compressed/<name of the pictures' folder>`` by default.
        exporter: the exporter of the student, if it is exported.
        console: the console that shows the progress.

    Raises:
        InputError: the request cannot be met; it is raised before anything is trained.
    """
    began, display = time.perf_counter(), Display(console)
    request.check()
    folder = out or Path("compressed") / recipe_name(request.pictures)
    path = folder / RECIPE
    reused = _can_reuse(request, path)
    plan: Plan | None = None
    _settle_threads(display)
    if reused:
        display.say(
            f"{path} exists for the same pictures and options: it is used unchanged, and finished stages are not "
            "trained again"
        )
    else:
        display.say(_MEASURING.format(request.pictures))
        plan = make_plan(request, run_command(path, folder), exporter, began)
        with hold(folder):
            _can_reuse(request, path)  # another process may have written it in the meantime
            artefact.claim(folder, recipe_name(request.pictures))
            write_atomic(path, plan.text.encode())
    experiment = Experiment(read_recipe(path), folder, console, shlex.join([str(path), "--work-dir", str(folder)]))
    experiment.threads_are_set = True
    _ = experiment.data  # prints the line about the data
    for line in [*(plan.lines if plan else []), f"recipe  {path}"]:
        experiment.say(line)
    if plan is not None:
        _train_teacher(experiment, plan, path, began)
    summary = run(experiment, baseline=True, report=False)
    file, export, export_error = None, None, None
    if exporter is not None:
        try:
            file, export = exporter.export(experiment)
        except InputError as error:  # raised by the command after the table and the report
            export_error = error
    return Compressed(experiment, summary, file, export, export_error, try_report(experiment))


def _train_teacher(experiment: Experiment, plan: Plan, path: Path, began: float) -> None:
    """Train the teacher; if that took another time than planned, write a recipe with other epochs for the students."""
    preflight(experiment, [experiment.recipe.method])
    check_networks(experiment)
    done = make_teacher(experiment)
    changed = plan.after_teacher(float(done.record["seconds"]), time.perf_counter() - began)
    if changed is not None:
        with hold(experiment.work_dir):
            write_atomic(path, changed.text.encode())
        experiment.recipe = read_recipe(path)
        experiment.say(changed.lines[-1])


def next_steps(result: Compressed) -> list[str]:
    """The paths of the exported file and the report, and the next commands, in lines."""
    folder = result.experiment.work_dir
    lines = [""]
    if result.file is not None:
        lines.append(f"file    {result.file}")
    if result.report is not None:
        lines.append(f"report  {result.report}")
    steps = [
        (
            f"{shlex.join(['factor-transfer', 'predict', str(result.file or folder)])} PICTURE",
            "the classes of a picture",
        )
    ]
    if result.file is None and result.export_error is None:
        steps.append((pip_install("executorch"), "then run the same command again to export a file"))
    steps.append((run_command(folder / RECIPE, folder), "train again after a change of the recipe"))
    return [*lines, *next_lines(steps)]


def _settle_threads(display: Display) -> None:
    """On a CPU, set the number of threads that is fastest now, for all trainings and the measurements before them.

    Threads wait for each other in every layer. If other programs keep some of the cores busy, or a container has fewer
    cores than the machine, the slowest thread delays all others, and a single thread may be ten times as fast.
    """
    if find_device("auto").type != "cpu" or not is_choice_free():
        return
    before, now = torch.get_num_threads(), fastest(measure_threads(convolutions))
    torch.set_num_threads(now)
    if now < before:
        display.say(
            f"threads  {now} of {before}, which is faster: other programs are using the processor, or this process may "
            "use fewer cores than the machine has"
        )


def _can_reuse(request: Request, path: Path) -> bool:
    """Whether the folder has a recipe for the same request. If not, a recipe may be written there.

    Raises:
        InputError: the folder contains something else, or a recipe that was edited.
    """
    folder, another = path.parent, "give another folder with --out"
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, not a folder; {another}")
    written = read_written(path)
    if written is None:
        if folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise InputError(f"{folder} is not empty and was not made by compress; {another}")
        return False
    if written.edited:
        raise InputError(
            f"{path} was changed since compress wrote it, and is not overwritten. Train with it by "
            f"`{run_command(path, folder)}`, or {another}"
        )
    if written.root != str(request.pictures.resolve()):
        raise InputError(f"{folder} has the results of other pictures, {written.root}; {another}")
    return written.command == request.command()
