"""The three stages: teacher, paraphraser, student. Each leaves an artefact, reused while its inputs are the same."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from factor_transfer import artefact
from factor_transfer.artefact import Artefact
from factor_transfer.checkpoint import load_into, read_weights
from factor_transfer.data import Augment, Batches
from factor_transfer.engine import Selection, fit
from factor_transfer.errors import InputError
from factor_transfer.evaluation import mean_losses, top
from factor_transfer.experiment import Experiment, check_fits
from factor_transfer.methods import TERMS, Distillation, Pair, ParaphraserTraining, Supervised, Term
from factor_transfer.recipe import Training
from factor_transfer.runlog import RunLog, duration


def make_teacher(experiment: Experiment, fresh: bool = False) -> Artefact:
    """Stage 1: train the teacher on labels, or take the weights that the recipe names."""
    section = experiment.recipe.teacher
    folder = experiment.work_dir / "teacher"
    done = _begin(experiment, folder, experiment.teacher_inputs(), fresh)
    if done:
        return done
    torch.manual_seed(section.seed)
    model = experiment.build(section)
    if section.weights is None:
        method = Supervised(model, experiment.normalize())
        return _train(experiment, folder, section, method, model, experiment.describe(section))
    path = Path(section.weights).expanduser()
    load_into(model, read_weights(path), path)
    record = experiment.describe(section)
    origin = artefact.find(path.parent) if path.name == artefact.WEIGHTS else None
    if origin:  # a stage's weights bring the statistics that they were trained on
        check_fits(origin, experiment.data)
        record |= {key: origin.record[key] for key in ("mean", "std")}
    experiment.say(f"teacher  taken from {path}")
    return artefact.finish(folder, model.state_dict(), {"stage": "teacher", **record, "epoch": None, "seconds": 0.0})


def make_paraphraser(experiment: Experiment, fresh: bool = False) -> Artefact:
    """Stage 2, connectors pre-training: the paraphraser learns to rebuild the teacher's feature."""
    section = experiment.recipe.paraphraser
    teacher = _require(experiment, "teacher", "teacher", experiment.teacher_inputs)
    folder = experiment.work_dir / "paraphraser"
    done = _begin(experiment, folder, experiment.paraphraser_inputs(teacher), fresh)
    if done:
        return done
    model, tap = experiment.load(teacher), experiment.taps[0]
    channels, _, _ = experiment.feature_shape(model, tap)
    torch.manual_seed(section.seed)
    paraphraser = experiment.new_paraphraser(channels)
    method = ParaphraserTraining(model, tap, paraphraser, experiment.normalize(teacher))
    return _train(experiment, folder, section, method, paraphraser, {"in_channels": channels, "tap": tap})


def make_student(experiment: Experiment, fresh: bool = False) -> Artefact:
    """Stage 3, distillation training: the student learns from labels and from the teacher's factors."""
    section = experiment.recipe.student
    teacher = _require(experiment, "teacher", "teacher", experiment.teacher_inputs)
    paraphraser = _require(experiment, "paraphraser", "pretrain", lambda: experiment.paraphraser_inputs(teacher))
    folder = experiment.work_dir / f"student-{'+'.join(experiment.recipe.terms)}-seed{section.seed}"
    done = _begin(experiment, folder, experiment.student_inputs(teacher, paraphraser), fresh)
    if done:
        return done
    # The student comes first from the seed: students of other methods start from the same weights.
    torch.manual_seed(section.seed)
    student = experiment.build(section)
    model = experiment.load(teacher)
    terms = _terms(experiment, student, model, paraphraser)
    method = Distillation(student, model, terms, experiment.normalize(), experiment.normalize(teacher))
    return _train(experiment, folder, section, method, student, experiment.describe(section))


def make_student_alone(experiment: Experiment, fresh: bool = False) -> Artefact:
    """The baseline: the same student, the same budget, labels alone."""
    section = experiment.recipe.student
    folder = experiment.work_dir / f"student-alone-seed{section.seed}"
    done = _begin(experiment, folder, experiment.alone_inputs(), fresh)
    if done:
        return done
    torch.manual_seed(section.seed)
    student = experiment.build(section)
    method = Supervised(student, experiment.normalize())
    return _train(experiment, folder, section, method, student, experiment.describe(section))


def _terms(experiment: Experiment, student: nn.Module, teacher: nn.Module, paraphraser: Artefact) -> dict[str, Term]:
    """The terms of the recipe, between these two networks."""
    teacher_tap, student_tap = experiment.taps
    pair = Pair(
        teacher_tap,
        student_tap,
        experiment.feature_shape(teacher, teacher_tap),
        experiment.feature_shape(student, student_tap),
        experiment.load_paraphraser(paraphraser),
    )
    return {
        name: TERMS[name].between(pair, **settings.model_dump()).to(experiment.fabric.device)
        for name, settings in experiment.recipe.terms.items()
    }


def _begin(experiment: Experiment, folder: Path, inputs: Mapping[str, Any], fresh: bool) -> Artefact | None:
    """The stage if it is up to date. Otherwise its folder is made ready, to start or to go on."""
    name = folder.name
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
    method: nn.Module,
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
        return top(*experiment.logits(product, data.validation, experiment.normalize()))

    assert section.epochs is not None  # the recipe refuses a training without
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
    done = artefact.finish(folder, outcome.state, {"stage": folder.name, **record, **figures})
    experiment.say(f"{folder.name}  done in {duration(outcome.seconds)}, epoch {outcome.epoch} kept  {done.weights}")
    return done
