"""The three stages: teacher, paraphraser, student. Each leaves an artefact, reused while its inputs are the same."""

from collections.abc import Callable, Mapping
from copy import copy
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from factor_transfer import artefact
from factor_transfer.artefact import Artefact
from factor_transfer.checkpoint import load_into, read_weights
from factor_transfer.data import Augment, Batches
from factor_transfer.engine import Selection, fit
from factor_transfer.errors import InputError
from factor_transfer.evaluation import mean_losses, top
from factor_transfer.experiment import Experiment, check_fits
from factor_transfer.foreign import adapt, read_foreign
from factor_transfer.inputs import paraphraser_inputs, student_inputs, teacher_inputs
from factor_transfer.methods import TERMS, Method, ParaphraserTraining, ReusedClassifier, Supervised
from factor_transfer.models import Normalize
from factor_transfer.options import chosen
from factor_transfer.pairing import as_product, connect, load_paraphrasers, new_paraphrasers
from factor_transfer.recipe import Network, Training
from factor_transfer.runlog import RunLog, duration


def make_teacher(experiment: Experiment, fresh: bool = False) -> Artefact:
    """Stage 1: train the teacher on labels, or take the weights that the recipe names."""
    section = experiment.recipe.teacher
    folder = experiment.work_dir / "teacher"
    done = _begin(experiment, folder, teacher_inputs(experiment), fresh)
    if done:
        return done
    model, record = starting_network(experiment, "teacher", section)
    if section.epochs is None:
        record |= {"stage": "teacher", "epoch": None, "seconds": 0.0}
        return artefact.finish(folder, model.state_dict(), record)
    normalize = experiment.normalize((record["mean"], record["std"]))
    return _train(experiment, folder, section, Supervised(model, normalize), model, record)


def make_paraphraser(experiment: Experiment, fresh: bool = False) -> Artefact:
    """Stage 2, connectors pre-training: the paraphraser learns to rebuild the teacher's feature."""
    section = experiment.recipe.paraphraser
    if section is None:
        raise InputError("the recipe says nothing of a paraphraser; add [paraphraser] to it")
    if not experiment.taps[0]:
        raise InputError("no feature map was found in the teacher; name one as teacher.tap")
    teacher = _teacher(experiment)
    folder = experiment.work_dir / "paraphraser"
    done = _begin(experiment, folder, paraphraser_inputs(experiment, teacher), fresh)
    if done:
        return done
    model, taps = experiment.load(teacher), experiment.taps[0]
    normalize = experiment.normalize(teacher)
    torch.manual_seed(section.seed)
    paraphrasers = new_paraphrasers(experiment, model, normalize)
    product = as_product(paraphrasers)
    record = {"in_channels": {tap: paraphraser.in_channels for tap, paraphraser in paraphrasers.items()}}
    if section.weights is not None:
        _take(experiment, "paraphraser", section.weights, product)
    if section.epochs is None:
        return artefact.finish(
            folder, product.state_dict(), {"stage": "paraphraser", **record, "epoch": None, "seconds": 0.0}
        )
    several, distance = list(paraphrasers.values()), chosen(section, ParaphraserTraining)
    method = ParaphraserTraining(model, taps, several, normalize, **distance)
    return _train(experiment, folder, section, method, product, record)


def make_student(experiment: Experiment, fresh: bool = False) -> Artefact:
    """Stage 3, distillation training: the student learns from labels and, by the method's terms, from the teacher."""
    recipe, section = experiment.recipe, experiment.recipe.student
    teacher = _teacher(experiment) if recipe.terms else None
    paraphraser = None
    if teacher and any(TERMS[name].needs_paraphraser for name in recipe.terms):
        paraphraser = _require(experiment, "paraphraser", "pretrain", lambda: paraphraser_inputs(experiment, teacher))
    folder = student_folder(experiment)
    done = _begin(experiment, folder, student_inputs(experiment, teacher, paraphraser), fresh)
    if done:
        return done
    # The student comes first from the seed: students of all methods start from the same weights.
    student, record = starting_network(experiment, "student", section)
    normalize = experiment.normalize((record["mean"], record["std"]))
    if teacher is None:
        return _train(experiment, folder, section, Supervised(student, normalize), student, record)
    paraphrasers = load_paraphrasers(experiment, paraphraser) if paraphraser else {}
    both = normalize, experiment.normalize(teacher)
    method = connect(experiment, student, experiment.load(teacher), both, paraphrasers)
    student = method.student.model
    if isinstance(student, ReusedClassifier):
        record["reused_classifier"] = student.record
    return _train(experiment, folder, section, method, student, record)


def check_weights(experiment: Experiment) -> None:
    """Look at all weights that the recipe names, before anything is trained.

    Raises:
        InputError: they cannot be had, or do not fit.
    """
    quiet = copy(experiment)
    quiet.console = Console(quiet=True)
    recipe = experiment.recipe
    for name, section in (("teacher", recipe.teacher), ("student", recipe.student)):
        if section.weights is not None:
            starting_network(quiet, name, section)
    if recipe.paraphraser and recipe.paraphraser.weights is not None:
        read_foreign(Path(recipe.paraphraser.weights).expanduser())


def student_folder(experiment: Experiment) -> Path:
    """Where the student of the recipe's method and seed lies."""
    method = "+".join(experiment.recipe.terms) or "alone"
    return experiment.work_dir / f"student-{method}-seed{experiment.recipe.student.seed}"


def starting_network(experiment: Experiment, name: str, section: Network) -> tuple[nn.Module, dict[str, Any]]:
    """A network with the weights that it starts from, and what its record says of it."""
    torch.manual_seed(section.seed)
    model = experiment.build(section, pretrained=section.weights == "pretrained")
    record = experiment.describe(section)
    if section.weights is None:
        mean, std = experiment.statistics(section)
        return model, record | {"mean": mean, "std": std}
    mean, std = experiment.statistics(section, model)
    if section.weights != "pretrained":
        path = Path(section.weights).expanduser()
        origin = artefact.find(path.parent) if path.name in artefact.STATES else None
        if origin:  # a stage's weights bring the statistics that they were trained on
            check_fits(origin, experiment.data)
            if section.mean is None:
                mean, std = origin.record["mean"], origin.record["std"]
            load_into(model, read_weights(path), path)
            experiment.say(f"{name}  taken from {path}")
        else:
            _take(experiment, name, section.weights, model)
    else:
        experiment.say(f"{name}  has the weights of {section.model}")
    if tuple(mean) != tuple(experiment.data.mean):
        own = ", ".join(f"{value:.3g}" for value in mean)
        experiment.say(f"{name}  its images are normalised by its own mean, {own}, and standard deviation")
    return model, record | {"mean": mean, "std": std}


def _take(experiment: Experiment, name: str, weights: str, module: nn.Module) -> None:
    """Load a file of weights, of ours or from elsewhere, and say what was found in it."""
    path = Path(weights).expanduser()
    state, report = adapt(read_foreign(path), module)
    load_into(module, state, path)
    for line in [f"taken from {path}", *report]:
        experiment.say(f"{name}  {line}")


def _teacher(experiment: Experiment) -> Artefact:
    return _require(experiment, "teacher", "teacher", lambda: teacher_inputs(experiment))


def _begin(experiment: Experiment, folder: Path, inputs: Mapping[str, Any], fresh: bool) -> Artefact | None:
    """The stage if it is up to date. Otherwise its folder is made ready, to start or to go on."""
    name = folder.name
    artefact.claim(experiment.work_dir, experiment.recipe.name)
    if not (folder / artefact.RECORD).exists():
        if folder.exists() and any(folder.iterdir()):  # of unknown origin: not to be gone on with
            experiment.say(f"{name}  {folder} has no {artefact.RECORD}; it is kept in {artefact.set_aside(folder)}")
        artefact.begin(folder, inputs)
        return None
    changed = [] if fresh else artefact.differences(folder, inputs)
    if fresh or changed:
        kept = artefact.set_aside(folder)
        why = "made anew" if fresh else "made anew, its inputs differ (" + "; ".join(changed) + ")"
        experiment.say(f"{name}  {why}; the former one is kept in {kept}")
        artefact.begin(folder, inputs)
        return None
    done = artefact.find(folder)
    if done:
        experiment.say(f"{name}  up to date  {done.weights}")
    elif (folder / artefact.RUNNING).exists():
        experiment.say(f"{name}  goes on from {folder / artefact.RUNNING}")
    return done


def _require(experiment: Experiment, name: str, command: str, inputs: Callable[[], Mapping[str, Any]]) -> Artefact:
    """An earlier stage, which must be finished and made from the same inputs."""
    folder = experiment.work_dir / name
    mend = f"To make it: factor-transfer {command} {experiment.command}"
    done = artefact.find(folder)
    if done is None:
        state = "is not finished" if (folder / artefact.RECORD).exists() else "is missing"
        raise InputError(f"the {name} {state}: {folder}\n{mend}")
    changed = artefact.differences(folder, inputs())
    if changed:
        lines = "\n  ".join(changed)
        raise InputError(f"the {name} in {folder} is another one than this recipe's:\n  {lines}\n{mend}")
    return done


def _train(
    experiment: Experiment,
    folder: Path,
    section: Training,
    method: Method,
    product: nn.Module,
    record: Mapping[str, Any],
) -> Artefact:
    """Fit ``method`` and leave its ``product`` in ``folder``."""
    data, device = experiment.data, experiment.fabric.device
    augment = Augment(**experiment.recipe.augment.model_dump())
    if isinstance(method, ParaphraserTraining):
        selection = Selection("loss", highest=False, keep=section.keep)
    else:
        selection = Selection("top1", highest=True, keep=section.keep)

    def validate() -> dict[str, float]:
        if not len(data.validation):
            return {}
        if isinstance(method, ParaphraserTraining):
            return mean_losses(method, experiment.in_order(data.validation))
        normalize = Normalize(record["mean"], record["std"]).to(device)
        return top(*experiment.logits(product, data.validation, normalize))

    assert section.epochs is not None  # a stage that is not trained does not come here
    outcome = fit(
        experiment.fabric,
        method,
        product,
        Batches(data.train, section.batch_size, section.seed, augment, device),
        epochs=section.epochs,
        optimization=section.optimization,
        validate=validate,
        selection=selection,
        checkpoint=folder / artefact.RUNNING,
        log=RunLog(experiment.console, folder.name, folder / artefact.METRICS),
    )
    figures = {"epoch": outcome.epoch, "validation": outcome.figures, "seconds": outcome.seconds}
    done = artefact.finish(folder, outcome.state, {"stage": folder.name, **record, **figures}, outcome.last)
    experiment.say(f"{folder.name}  done in {duration(outcome.seconds)}, epoch {outcome.epoch} kept  {done.weights}")
    return done
