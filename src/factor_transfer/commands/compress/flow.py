"""``compress`` and ``init``: from a folder of pictures to a recipe, and on to a trained student and its file."""

import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from factor_transfer.commands.compress.measure import Exporter
from factor_transfer.commands.compress.plan import Plan, Wish, make_plan, run_command
from factor_transfer.commands.compress.recipe_file import read_written, recipe_name
from factor_transfer.commands.run import run
from factor_transfer.config.read import read_recipe
from factor_transfer.distributed.fabric import find_device
from factor_transfer.distributed.threads import use_fast_threads
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
_MEASURING = "looking at {} and measuring how fast this device trains; that takes up to a minute"


@dataclass(frozen=True)
class Compressed:
    """What came out.

    Attributes:
        experiment: that was run.
        summary: see ``commands.run.run``.
        file: the exported file, if there is one.
        export: what ``export.json`` says.
        refused: why there is no file, where one was wanted and was not good enough.
        report: the page, if it could be made.
    """

    experiment: Experiment
    summary: dict[str, Any]
    file: Path | None
    export: dict[str, Any] | None
    refused: InputError | None
    report: Path | None


def init(wish: Wish, out: Path | None, exporter: Exporter | None, console: Console) -> list[str]:
    """Write the recipe alone.

    Args:
        wish: what a person asks for.
        out: the recipe's file; named after the folder in the working directory, if left out.
        exporter: what will write the file, if one is wanted: its time is part of the plan.
        console: where progress is shown.

    Returns:
        Lines that say what to do next.

    Raises:
        InputError: the file is there and is not as ``init`` wrote it; or what ``make_plan`` refuses.
    """
    began, display = time.perf_counter(), Display(console)
    wish.check()
    path = out or Path(f"{recipe_name(wish.pictures)}.toml")
    written = read_written(path)
    if path.is_dir():
        raise InputError(f"--out {path} is a folder; give the name of a file, such as {path / RECIPE}")
    if written is not None and written.edited:
        raise InputError(f"{path} is there, and was changed or is no recipe of init; give another file with --out")
    _settle_threads(display)
    display.say(_MEASURING.format(wish.pictures))
    plan = make_plan(wish, run_command(path), exporter, began)
    write_atomic(path, plan.text.encode())
    for line in plan.lines:
        display.say(line)
    return ["", f"{path} is written.", *next_lines([(run_command(path), "trains by it")])]


def compress(wish: Wish, out: Path | None, exporter: Exporter | None, console: Console) -> Compressed:
    """Choose what to train, train it, export the student, and write the report.

    Args:
        wish: what a person asks for.
        out: the folder of recipe and results; ``compressed/<name of the pictures' folder>``, if left out.
        exporter: what writes the file, if one is wanted.
        console: where progress is shown.

    Raises:
        InputError: what cannot be, before anything is trained.
    """
    began, display = time.perf_counter(), Display(console)
    wish.check()
    folder = out or Path("compressed") / recipe_name(wish.pictures)
    path = folder / RECIPE
    kept = _is_kept(wish, path)
    plan: Plan | None = None
    _settle_threads(display)
    if kept:
        display.say(
            f"{path} is there, written for the same pictures and options: it is used as it is, and what is trained "
            "already is not trained again"
        )
    else:
        display.say(_MEASURING.format(wish.pictures))
        plan = make_plan(wish, run_command(path, folder), exporter, began)
        with hold(folder):
            _is_kept(wish, path)  # somebody may have been faster
            artefact.claim(folder, recipe_name(wish.pictures))
            write_atomic(path, plan.text.encode())
    experiment = Experiment(read_recipe(path), folder, console, shlex.join([str(path), "--work-dir", str(folder)]))
    _ = experiment.data  # says what was found
    for line in [*(plan.lines if plan else []), f"recipe  {path}"]:
        experiment.say(line)
    if plan is not None:
        _train_teacher(experiment, plan, path, began)
    summary = run(experiment, baseline=True, report=False)
    file, export, refused = None, None, None
    if exporter is not None:
        try:
            file, export = exporter.export(experiment)
        except InputError as error:  # what was trained is worth a table and a report nevertheless
            refused = error
    return Compressed(experiment, summary, file, export, refused, try_report(experiment))


def _train_teacher(experiment: Experiment, plan: Plan, path: Path, began: float) -> None:
    """Train the teacher; if that has taken too long, write a recipe with fewer epochs for what is left to do."""
    preflight(experiment, [experiment.recipe.method])
    check_networks(experiment)
    done = make_teacher(experiment)
    shorter = plan.after_teacher(float(done.record["seconds"]), time.perf_counter() - began)
    if shorter is not None:
        with hold(experiment.work_dir):
            write_atomic(path, shorter.text.encode())
        experiment.recipe = read_recipe(path)
        experiment.say(shorter.lines[-1])


def next_steps(found: Compressed) -> list[str]:
    """What a person may do now: the file, the report, and the next commands."""
    folder = found.experiment.work_dir
    lines = [""]
    if found.file is not None:
        lines.append(f"file    {found.file}")
    if found.report is not None:
        lines.append(f"report  {found.report}")
    steps = [(f"{shlex.join(['factor-transfer', 'predict', str(found.file or folder)])} PICTURE", "its classes")]
    if found.file is None and found.refused is None:
        steps.append((pip_install("executorch"), "then the same command again: a file for a device"))
    steps.append((run_command(folder / RECIPE, folder), "after a change of the recipe"))
    return [*lines, *next_lines(steps)]


def _settle_threads(display: Display) -> None:
    """On a processor, compute with as many threads as are fastest now."""
    if find_device("auto").type != "cpu":
        return
    before, now = use_fast_threads()
    if now < before:
        display.say(
            f"threads  {now} of {before} from now on: that is faster, since other programs keep the processor busy, or "
            "this process may use fewer cores than the machine has"
        )


def _is_kept(wish: Wish, path: Path) -> bool:
    """Whether the recipe that is there is the one that is asked for; if there is none, whether there may be one.

    Raises:
        InputError: the folder holds something else, or a recipe that somebody has changed.
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
            f"{path} was changed since compress wrote it, and is not overwritten. Train by it with "
            f"`{run_command(path, folder)}`, or {another}"
        )
    if written.root != str(wish.pictures.resolve()):
        raise InputError(f"{folder} holds what was made of other pictures, {written.root}; {another}")
    return written.command == wish.command()
