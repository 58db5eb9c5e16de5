"""Writing ``report.html`` into a work dir."""

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

Model = dict[str, Any]  # the name and the arguments of a network in a record


def open_work_dir(folder: Path, console: Console, trusted_code: Collection[str] = ()) -> tuple[Experiment, list[Model]]:
    """Open the experiment of a work dir with a finished run or comparison.

    Args:
        folder: the work dir.
        console: the console that progress is shown on.
        trusted_code: the code outside this package that may be run if the records name it.

    Returns:
        The experiment, and the ``model`` records of its networks, to be shown before any of them is built.

    Raises:
        InputError: if the folder is not a work dir, its run is not finished or is damaged, or it names code that is not
            trusted.
    """
    found = read_work_dir(folder)
    models = [done.record["model"] for done in found.networks.values()]
    recipe = read_recipe(found.student.folder / artefact.RECIPE)
    announced = permit(models, trusted_code, folder, recipe.data.name)
    experiment = Experiment(recipe, folder, console, f"{found.student.folder / artefact.RECIPE}", trusted_code)
    return experiment, [dict(model) for model in announced]


def write_report(experiment: Experiment) -> Path:
    """Write the report of a finished run or comparison, replacing an earlier one.

    Logits for the test images that this command has already computed are used again, see ``Experiment.test_logits``.

    Args:
        experiment: the experiment.

    Returns:
        The path of the report.

    Raises:
        InputError: if the work dir has no finished run, or is damaged.
    """
    found = collectives.on_rank_zero(lambda: read_work_dir(experiment.work_dir))
    unavailable = collectives.on_rank_zero(lambda: _images_missing(experiment, found))
    if unavailable:
        experiment.say(f"Warning: {unavailable}; the parts of the report that need the test images are left out")
    answers = {} if unavailable else {role: _answers(experiment, found, done) for role, done in found.networks.items()}
    figures = summary_figures(found.summary) if found.summary is not None else {}
    if found.summary is None and not unavailable:
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
            # The other processes wait for the first one, and only errors of this type are passed on to them.
            raise InputError(f"the report could not be written: {first_line(error)}") from error

    def make() -> None:
        paraphrased: list[TapReport] = []
        teacher, paraphraser = found.teacher, found.paraphraser
        if not unavailable and teacher is not None and paraphraser is not None and experiment.recipe.paraphraser:
            paraphrased = paraphrase(experiment, teacher, paraphraser, found.student)
        images = (None, None) if unavailable else (experiment.data, experiment.test)
        page = compose(found, experiment.recipe, Measured(figures, answers, paraphrased), *images)
        write_atomic(path, render(page).encode("utf-8", "backslashreplace"))

    collectives.on_rank_zero(write)
    return path


def try_report(experiment: Experiment) -> Path | None:
    """Write the report at the end of a training, and print a warning if it cannot be written.

    Args:
        experiment: the experiment.

    Returns:
        The path of the report; ``None`` if it could not be written.
    """
    try:
        return write_report(experiment)
    except Exception as error:  # hours of training must not fail because of the report
        experiment.say(f"Warning: the report could not be written: {first_line(error)}")
        return None


def _answers(experiment: Experiment, found: WorkDir, done: Artefact) -> Answers:
    answers = Answers(*experiment.test_logits(done, found.last and done.folder.name != "teacher"))
    check_logits(answers.logits, experiment.data.classes, done.weights)
    return answers


def _images_missing(experiment: Experiment, found: WorkDir) -> str:
    """The reason why the networks cannot be evaluated on the test images; empty if they can."""
    try:
        data = experiment.data
    except InputError as error:
        return f"the images cannot be read ({first_line(error)})"
    if found.student.record["inputs"].get("data") != data.fingerprint:
        return "the images differ from those that the student was trained on"
    return ""
