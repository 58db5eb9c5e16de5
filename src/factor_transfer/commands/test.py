"""The command ``test``: the evaluation of a checkpoint on the test split."""

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import nn

from factor_transfer.config.recipe import Recipe
from factor_transfer.data import Data, in_order, open_data
from factor_transfer.distributed import collectives
from factor_transfer.distributed.precision import FULL
from factor_transfer.errors import InputError
from factor_transfer.models import Normalize, build_model, check_trusted_data, zoo_statistics
from factor_transfer.pipeline import artefact
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.pipeline.experiment import EVALUATION_BATCH, check_fits, data_line, load_network, named_code
from factor_transfer.pipeline.finished_run import find_run, named
from factor_transfer.pipeline.records import check_logits
from factor_transfer.pipeline.stages.student import student_folder
from factor_transfer.pipeline.weights.classes import permute_outputs
from factor_transfer.pipeline.weights.foreign import adapt, read_foreign
from factor_transfer.report.metrics import check_metrics, measure
from factor_transfer.state_dicts import load_into
from factor_transfer.training.evaluate import predict


def find_tested(place: Path, overrides: Sequence[str] = ()) -> tuple[Recipe, Path, list[dict[str, Any]]]:
    """Find the network to test in a run, which contains the recipe that it was trained with.

    Args:
        place: the path of a run, of a student or teacher in it, or of their weights.
        overrides: settings of the recipe to override, such as ``"data.root=pictures"``.

    Returns:
        The recipe, the checkpoint for ``score``, and the models in its record.

    Raises:
        InputError: there is no finished run.
    """
    place = named(place)
    folder = named(place.parent) if place.name in artefact.STATES else place
    is_teacher = folder.name == "teacher" and (folder / artefact.RECORD).exists()
    run = find_run(folder.parent if is_teacher else folder)
    done = run.teacher if is_teacher else run.student
    if done is None:
        raise InputError(f"{folder} is not finished; the command that started it resumes it")
    if not done.has_classifier:
        raise InputError(f"the teacher in {folder} has no classifier for the classes of the data; give its student")
    checkpoint = place if folder != place else done.folder
    return run.recipe(overrides), checkpoint, run.models("teacher" if is_teacher else "student")


def score(
    recipe: Recipe,
    checkpoint: Path,
    metrics: Iterable[str],
    say: Callable[[str], None] = lambda _: None,
    trusted_code: Collection[str] | None = None,
) -> dict[str, Any]:
    """Evaluate a network on the test split of a recipe.

    Args:
        recipe: the recipe with the data; for weights that are not in a stage's folder, also with the network.
        checkpoint: a file of weights, the folder of a stage, or a work dir, which stands for its finished student;
            if it has several, the student with the recipe's method and seed.
        metrics: the names of the metrics, see ``report.metrics.measure``.
        say: a function that prints a line about the images.
        trusted_code: the external code that may run, for a recipe that was found in a run; see ``Experiment``.

    Returns:
        The results of ``report.metrics.measure``, and a ``note`` if the network was trained on other images than the
        recipe's.

    Raises:
        InputError: a metric is unknown, a file is missing or damaged, or the network has other classes or layers.
    """
    metrics = check_metrics(metrics)
    folder = _student(checkpoint, recipe) if artefact.is_work_dir(checkpoint) else checkpoint
    path = folder / artefact.WEIGHTS if folder.is_dir() else folder
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}; give a file of weights, or the folder of a finished stage")
    from factor_transfer.distributed.fabric import open_fabric  # not before it is needed: it takes a second

    fabric = open_fabric(recipe.device, FULL)  # figures are measured in full precision
    if trusted_code is not None:
        check_trusted_data(recipe.data.name, trusted_code, f"the recipe of {checkpoint}")
    data = open_data(**recipe.data.arguments)
    say(data_line(data, fabric))
    model, normalize, note = _network(recipe, data, path, trusted_code)
    network = fabric.to_device(nn.Sequential(normalize, model))
    place = collectives.rank(), collectives.world()
    logits, labels = predict(network, in_order(data.test(), EVALUATION_BATCH, fabric.device, *place))
    check_logits(logits, data.classes, path)
    return {**measure(logits, labels, data.classes, metrics), "note": note}


def _student(work_dir: Path, recipe: Recipe) -> Path:
    """The folder of a work dir's finished student."""
    expected = student_folder(work_dir, recipe)
    finished = [folder for folder in sorted(work_dir.glob("student-*")) if artefact.find(folder)]
    if expected in finished or len(finished) == 1:
        return expected if expected in finished else finished[0]
    names = ", ".join(folder.name for folder in finished)
    found = f"has finished students ({names}), but not {expected.name}" if finished else "has no finished student"
    raise InputError(f"{work_dir} {found}; give the folder of a finished student")


def _network(
    recipe: Recipe, data: Data, path: Path, trusted_code: Collection[str] | None
) -> tuple[nn.Module, Normalize, str]:
    """The network with the weights in ``path``, its normalisation, and a note about its training images, if any."""
    done = artefact.find(path.parent) if path.name in artefact.STATES else None
    if done:
        trusted = named_code(recipe, done) if trusted_code is None else trusted_code
        model = load_network(done, path.name == artefact.LAST, trusted)
        check_fits(done, data)
        return model, Normalize(done.record["mean"], done.record["std"]), compare_images(done, data)
    # Weights without a record may be of either network: they are tried in the teacher, then in the student.
    read, faults = cache(partial(read_foreign, path)), list[InputError]()
    for name, section in (("teacher", recipe.teacher), ("student", recipe.student)):
        model = build_model(section.model, len(data.classes), data.channels, **section.args.model_dump())
        try:
            load_into(model, adapt(read(section.weights_key), model)[0], path)
        except InputError as error:
            faults.append(error)
            continue
        if section.mean is not None and section.std is not None:
            normalize = Normalize(section.mean, section.std)
        else:
            normalize = Normalize(*(zoo_statistics(section.model, model, data.channels) or (data.mean, data.std)))
        if isinstance(section.classes, list):
            permute_outputs(name, model, normalize(data.train.images[:2]), section.classes, data.classes)
        return model, normalize, ""
    raise faults[-1]


def compare_images(done: Artefact, data: Data) -> str:
    """A note if the network was trained on other images than those of a recipe, or an empty text.

    Raises:
        InputError: the network may have been trained on the recipe's test images.
    """
    if done.record["inputs"].get("data") == data.fingerprint:
        return ""
    if data.test_is_cut:
        raise InputError(
            f"{done.weights} was trained with another split of the images than this recipe's, so it may have seen test "
            "images. Give the settings of [data] that it was trained with, or use a separate test folder"
        )
    return "this network was trained on other images, or with other settings of [data], than this recipe's"
