"""Write ``report.html`` into a work dir."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from rich.console import Console

from factor_transfer.config.read import read_recipe
from factor_transfer.distributed import collectives
from factor_transfer.errors import InputError, first_line
from factor_transfer.files import write_atomic
from factor_transfer.models import permit
from factor_transfer.pipeline import artefact
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.records import check_logits
from factor_transfer.report.html.answers import Answers
from factor_transfer.report.html.features import TapReport, paraphrase
from factor_transfer.report.html.page import Measured, compose, render
from factor_transfer.report.html.tables import summary_figures
from factor_transfer.report.html.work_dir import WorkDir, read_work_dir
from factor_transfer.report.results import network_figures

REPORT = "report.html"

Model = dict[str, Any]  # what a record says of a network: its name and arguments


def open_work_dir(folder: Path, console: Console, trusted_code: Collection[str] = ()) -> tuple[Experiment, list[Model]]:
    """The experiment of a work dir that holds a finished run or comparison.

    Args:
        folder: the work dir.
        console: where progress is shown.
        trusted_code: names of code from outside that the records may name and that may run.

    Returns:
        The experiment, and what its records say of the networks, to be announced before any of them is built.

    Raises:
        InputError: it is no work dir, its run is not finished or damaged, or it names code that is not trusted.
    """
    found = read_work_dir(folder)
    models = [done.record["model"] for done in found.networks.values()]
    permit(models, trusted_code, folder)
    recipe = read_recipe(found.student.folder / artefact.RECIPE)
    return Experiment(recipe, folder, console, f"{found.student.folder / artefact.RECIPE}", trusted_code), models


def write_report(experiment: Experiment) -> Path:
    """Make the report of a finished run or comparison anew.

    The test images are looked at no more than they were in this command already, see ``Experiment.test_logits``.

    Args:
        experiment: the recipe in its work dir.

    Returns:
        The path of the file.

    Raises:
        InputError: the work dir holds no finished run, or what it holds is damaged.
    """
    found = collectives.on_rank_zero(lambda: read_work_dir(experiment.work_dir))
    why = collectives.on_rank_zero(lambda: _images_missing(experiment, found))
    if why:
        experiment.say(f"Warning: {why}; what needs the test images is left out of the report")
    answers = {} if why else {role: _answers(experiment, found, done) for role, done in found.networks.items()}
    figures = summary_figures(found.summary) if found.summary is not None else {}
    if found.summary is None and not why:
        # All students of a comparison cost the same.
        figures = {role: network_figures(experiment, done) for role, done in found.networks.items()}
    path = experiment.work_dir / REPORT

    def write() -> None:
        try:
            make()
        except (InputError, OSError):
            raise
        except Exception as error:
            if collectives.world() == 1:
                raise
            # The other processes wait for what the first one says, and hear only of these errors.
            raise InputError(f"the report could not be made: {first_line(error)}") from error

    def make() -> None:
        paraphrased: list[TapReport] = []
        if not why and found.teacher is not None and found.paraphraser is not None and experiment.recipe.paraphraser:
            paraphrased = paraphrase(experiment, found.teacher, found.paraphraser)
        images = (None, None) if why else (experiment.data, experiment.test)
        page = compose(found, experiment.recipe, Measured(figures, answers, paraphrased), *images)
        write_atomic(path, render(page).encode("utf-8", "backslashreplace"))

    collectives.on_rank_zero(write)
    return path


def try_report(experiment: Experiment) -> Path | None:
    """Make the report at the end of a training, which has succeeded whether or not the report can be made.

    Args:
        experiment: the recipe in its work dir.

    Returns:
        The path of the file; ``None`` if it could not be made, which one line says.
    """
    try:
        return write_report(experiment)
    except Exception as error:  # whatever it is, a training of hours must not fail for it
        experiment.say(f"Warning: the report could not be made: {first_line(error)}")
        return None


def _answers(experiment: Experiment, found: WorkDir, done: Artefact) -> Answers:
    answers = Answers(*experiment.test_logits(done, found.last and done.folder.name != "teacher"))
    check_logits(answers.logits, experiment.data.classes, done.weights)
    return answers


def _images_missing(experiment: Experiment, found: WorkDir) -> str:
    """Why the networks cannot be tried on the test images; empty if they can."""
    try:
        data = experiment.data
    except InputError as error:
        return f"the images cannot be read ({first_line(error)})"
    if found.student.record["inputs"].get("data") != data.fingerprint:
        return "the images are others than those that the student was trained on"
    return ""
