"""A checkpoint on the test split: what ``factor-transfer test`` does."""

from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from factor_transfer.config.recipe import Recipe
from factor_transfer.data import Data, in_order, open_data
from factor_transfer.distributed import collectives
from factor_transfer.distributed.fabric import open_fabric
from factor_transfer.distributed.precision import FULL
from factor_transfer.errors import InputError
from factor_transfer.files import load_into
from factor_transfer.models import Normalize, build_model, zoo_statistics
from factor_transfer.pipeline import artefact
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.pipeline.experiment import EVALUATION_BATCH, check_fits, data_line, load_network, named_code
from factor_transfer.pipeline.finished_run import find_run
from factor_transfer.pipeline.records import check_logits
from factor_transfer.pipeline.stages.student import student_folder
from factor_transfer.pipeline.weights.foreign import adapt, read_foreign
from factor_transfer.report.metrics import check_metrics, measure
from factor_transfer.training.evaluate import predict


def find_tested(place: Path, overrides: Sequence[str] = ()) -> tuple[Recipe, Path, list[dict[str, Any]]]:
    """The network to test, by its folder alone: a run carries the recipe that it was trained by.

    Args:
        place: of a run, of a student or teacher in it, or of their weights.
        overrides: of the recipe.

    Returns:
        The recipe, the checkpoint for ``score``, and what its record says of the network.

    Raises:
        InputError: there is no finished run.
    """
    folder = place.parent if place.name in artefact.STATES else place
    is_teacher = folder.name == "teacher" and (folder / artefact.RECORD).exists()
    run = find_run(folder.parent if is_teacher else folder)
    done = run.teacher if is_teacher else run.student
    if done is None:
        raise InputError(f"{folder} is not finished; the command that began it goes on with it")
    checkpoint = place if folder != place else done.folder
    return run.recipe(overrides), checkpoint, run.models("teacher" if is_teacher else "student")


def score(
    recipe: Recipe,
    checkpoint: Path,
    metrics: Iterable[str],
    say: Callable[[str], None] = lambda _: None,
    trusted_code: Collection[str] | None = None,
) -> dict[str, Any]:
    """Figures of a network on the recipe's test split.

    Args:
        recipe: its data, and for weights that do not lie in a stage's folder, its student or teacher.
        checkpoint: weights, the folder of a stage, or a work dir, which means its finished student; of several, the one
            of the recipe's method and seed.
        metrics: see ``evaluation.measure``.
        say: is told what images were found, in a line.
        trusted_code: whose code may be run, for a recipe that was found in a folder; see ``Experiment``.

    Returns:
        See ``evaluation.measure``; and a ``note``, if the network was trained on other images than the recipe's.

    Raises:
        InputError: an unknown metric; a missing or damaged file; a network of other classes or layers.
    """
    metrics = check_metrics(metrics)
    folder = _student(checkpoint, recipe) if artefact.is_work_dir(checkpoint) else checkpoint
    path = folder / artefact.WEIGHTS if folder.is_dir() else folder
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}; give a file of weights, or the folder of a finished stage")
    fabric = open_fabric(recipe.device, FULL)  # figures are measured in full precision
    data = open_data(**recipe.data.model_dump())
    say(data_line(data, fabric))
    model, normalize, note = _network(recipe, data, path, trusted_code)
    network = fabric.to_device(nn.Sequential(normalize, model))
    place = collectives.rank(), collectives.world()
    logits, labels = predict(network, in_order(data.test(), EVALUATION_BATCH, fabric.device, *place))
    check_logits(logits, data.classes, path)
    return {**measure(logits, labels, data.classes, metrics), "note": note}


def _student(work_dir: Path, recipe: Recipe) -> Path:
    """The folder of a work dir's finished student."""
    meant = student_folder(work_dir, recipe)
    done = [folder for folder in sorted(work_dir.glob("student-*")) if artefact.find(folder)]
    if meant in done or len(done) == 1:
        return meant if meant in done else done[0]
    which = "has none" if not done else f"has {', '.join(folder.name for folder in done)}, and not {meant.name}"
    raise InputError(f"which student of {work_dir}? It {which}; give the folder of a finished one")


def _network(
    recipe: Recipe, data: Data, path: Path, trusted_code: Collection[str] | None
) -> tuple[nn.Module, Normalize, str]:
    """The network whose weights are in ``path``, its normalisation, and what should be known of it."""
    done = artefact.find(path.parent) if path.name in artefact.STATES else None
    if done:
        trusted = named_code(recipe, done) if trusted_code is None else trusted_code
        model = load_network(done, path.name == artefact.LAST, trusted)
        check_fits(done, data)
        return model, Normalize(done.record["mean"], done.record["std"]), compare_images(done, data)
    # Weights from elsewhere do not say what they are: they are the teacher's if they have just its layers.
    state = read_foreign(path)
    faults: list[InputError] = []
    for section in (recipe.teacher, recipe.student):
        model = build_model(section.model, len(data.classes), data.channels, **section.args.model_dump())
        try:
            load_into(model, adapt(state, model)[0], path)
        except InputError as error:
            faults.append(error)
            continue
        if section.mean is not None and section.std is not None:
            return model, Normalize(section.mean, section.std), ""
        mean, std = zoo_statistics(section.model, model, data.channels) or (data.mean, data.std)
        return model, Normalize(mean, std), ""
    raise faults[-1]


def compare_images(done: Artefact, data: Data) -> str:
    """A note if the network was trained on other images than the recipe's; refused if test images may be among them."""
    if done.record["inputs"].get("data") == data.fingerprint:
        return ""
    if data.test_is_cut:
        raise InputError(
            f"{done.weights} was trained on another cut of the images than this recipe makes: test images may be among "
            "those it has seen. Give the settings of [data] that it was trained with, or a test folder of its own"
        )
    return "this network was trained on other images, or with other settings of [data], than this recipe's"
