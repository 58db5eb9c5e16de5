"""What all stages share: how they start, are trained, finish, and are found by later ones."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from torch import nn

from factor_transfer.config.recipe import Training
from factor_transfer.data import Batch, Batches, Views
from factor_transfer.distributed import collectives, signals
from factor_transfer.errors import InputError, Interrupted
from factor_transfer.files import State, remove_unfinished
from factor_transfer.methods import Method
from factor_transfer.models import Normalize, macs
from factor_transfer.pipeline import artefact
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.lock import hold, still_held
from factor_transfer.pipeline.weights.trial import leave_out_unused
from factor_transfer.training.checkpoint import is_under_way
from factor_transfer.training.compile import worthwhile
from factor_transfer.training.evaluate import at_chance, mean_losses, top
from factor_transfer.training.log import RunLog, duration
from factor_transfer.training.loop import fit
from factor_transfer.training.trainer import Selection, Trainer

P = ParamSpec("P")
R = TypeVar("R")


def in_work_dir(function: Callable[P, R]) -> Callable[P, R]:
    """Have a function hold the work dir of its experiment, so that no other recipe or process works in it meanwhile.

    The function's first argument is the experiment, or a list of experiments of one work dir. Calls may be nested.

    Raises:
        InputError: the work dir is another recipe's, or another process holds it.
    """

    @wraps(function)
    def holding(*args: P.args, **kwargs: P.kwargs) -> R:
        first: Any = args[0]
        experiment: Experiment = first if isinstance(first, Experiment) else first[0]
        # Looked at before the lock, which would leave a file in a folder that is somebody else's; claimed under it.
        collectives.on_rank_zero(lambda: artefact.check_owner(experiment.work_dir, experiment.recipe.name))
        with hold(experiment.work_dir):
            collectives.on_rank_zero(lambda: artefact.claim(experiment.work_dir, experiment.recipe.name))
            return function(*args, **kwargs)

    return holding


@collectives.by_rank_zero
def start_stage(
    experiment: Experiment, folder: Path, made_from: Mapping[str, Any], fresh: bool = False
) -> Artefact | None:
    """The stage if it is up to date; otherwise ``None``, and its folder is made ready to start or to resume.

    Args:
        experiment: the experiment.
        folder: the stage's folder.
        made_from: what the stage is made from, see ``provenance``.
        fresh: start anew even if the stage is up to date.
    """
    name = folder.name
    if not (folder / artefact.RECORD).exists():
        if folder.exists() and any(folder.iterdir()):  # of unknown origin, so it cannot be resumed
            experiment.say(f"{name}  {folder} has no {artefact.RECORD}; it is kept in {artefact.archive(folder)}")
        artefact.begin(folder, made_from)
        return None
    remove_unfinished(folder)
    changed = [] if fresh else artefact.differences(folder, made_from)
    if fresh or changed:
        archived = artefact.archive(folder)
        why = "made anew" if fresh else "made anew, its inputs differ (" + "; ".join(changed) + ")"
        experiment.say(f"{name}  {why}; the former one is kept in {archived}")
        artefact.begin(folder, made_from)
        return None
    done = artefact.find(folder)
    if done:
        experiment.say(f"{name}  up to date  {done.weights}")
    elif is_under_way(folder / artefact.RUNNING):
        experiment.say(f"{name}  goes on from {folder / artefact.RUNNING}")
    return done


@collectives.by_rank_zero
def finish_stage(folder: Path, state: State, record: Mapping[str, Any], last: State | None = None) -> Artefact:
    """Write a stage's weights and record, see ``artefact.finish``."""
    still_held(folder.parent)
    return artefact.finish(folder, state, record, last)


@collectives.by_rank_zero
def find_stage(experiment: Experiment, name: str, command: str, made_from: Callable[[], Mapping[str, Any]]) -> Artefact:
    """An earlier stage, finished and up to date.

    Args:
        experiment: the experiment.
        name: the stage's name.
        command: the command that makes it, for messages.
        made_from: computes what the stage is made from now.

    Raises:
        InputError: it is missing, not finished, or made from something else.
    """
    folder = experiment.work_dir / name
    mend = f"To make it: factor-transfer {command} {experiment.command}"
    done = artefact.find(folder)
    if done is None:
        state = "is not finished" if (folder / artefact.RECORD).exists() else "is missing"
        raise InputError(f"the {name} {state}: {folder}\n{mend}")
    changed = artefact.differences(folder, made_from())
    if changed:
        lines = "\n  ".join(changed)
        raise InputError(f"the {name} in {folder} is another one than this recipe's:\n  {lines}\n{mend}")
    return done


@dataclass(frozen=True)
class StageTraining:
    """A stage's training, and what its artefact will be.

    Attributes:
        experiment: the experiment.
        folder: the stage's folder.
        section: the recipe's section, which says how to train.
        method: the method to train.
        product: the part of the method that is delivered.
        record: what ``stage.json`` will say, besides the figures.
        start: the validation top-1 of the weights that it starts from, in percent; ``None`` if they are random.
    """

    experiment: Experiment
    folder: Path
    section: Training
    method: Method
    product: nn.Module
    record: Mapping[str, Any]
    start: float | None = None

    def trainer(self, steps: int) -> Trainer:
        """The training, ready to start or to go on.

        Args:
            steps: an epoch.
        """
        metric, highest = ("top1", True) if self.method.classifies else ("loss", False)
        assert self.section.epochs is not None  # a stage that is not trained does not come here
        recipe = self.experiment.recipe
        return Trainer(
            self.experiment.fabric,
            self.method,
            self.product,
            epochs=self.section.epochs,
            steps=steps,
            optimization=self.section.optimization,
            validate=self.validate,
            selection=Selection(metric, highest=highest, keep=self.section.keep),
            checkpoint=self.folder / artefact.RUNNING,
            log=RunLog(self.experiment.display, self.folder.name, self.folder / artefact.METRICS),
            compiled=self._compiled(),
            max_skipped=recipe.max_skipped if recipe.on_nonfinite == "skip" else 0,
            sync_batch_norm=recipe.sync_batch_norm,
        )

    def validate(self) -> dict[str, float]:
        """Figures on the validation split, if there is one."""
        collectives.on_rank_zero(lambda: still_held(self.experiment.work_dir))
        experiment, data = self.experiment, self.experiment.data
        if not len(data.validation):
            return {}
        if not self.method.classifies:
            return mean_losses(self.method, experiment.in_order(data.validation))
        normalize = Normalize(self.record["mean"], self.record["std"]).to(experiment.fabric.device)
        return top(*experiment.logits(self.product, data.validation, normalize))

    def _compiled(self) -> bool:
        wish, experiment = self.experiment.recipe.compile, self.experiment
        if experiment.recipe.sync_batch_norm and collectives.world() > 1:
            return False  # what processes say to each other is not for a compiler
        if wish != "auto":
            return wish == "on"
        assert self.section.epochs is not None
        images = self.section.epochs * len(experiment.data.train)
        # What does not classify is small beside the frozen teacher.
        cost = macs(self.product, experiment.examples[:1].float()) if self.method.classifies else 0
        return worthwhile(cost, images, images // self.section.batch_size, experiment.fabric.device)

    def deliver(self, trainer: Trainer) -> Artefact:
        """Leave what was trained in the stage's folder."""
        outcome = trainer.outcome()
        figures = {"epoch": outcome.epoch, "validation": outcome.figures, "seconds": outcome.seconds}
        record = {"stage": self.folder.name, **self.record, **figures}
        done = finish_stage(self.folder, outcome.state, record, outcome.last)
        self.experiment.say(
            f"{self.folder.name}  done in {duration(outcome.seconds)}, epoch {outcome.epoch} kept  {done.weights}"
        )
        for warning in self.warnings(outcome.figures):
            self.experiment.say(f"Warning: {self.folder.name} {warning}")
        return done

    def warnings(self, figures: Mapping[str, float]) -> list[str]:
        """What is wrong with a network whose training ended: it has learnt nothing, or less than it began with."""
        if "top1" not in figures or not self.method.classifies:
            return []
        data, top1 = self.experiment.data, figures["top1"]
        found = []
        if at_chance(top1, len(data.classes), len(data.validation)):
            found.append(
                f"has learnt nothing: it is right in {top1:.2f} % of the validation images, guessing is in "
                f"{100 / len(data.classes):.2f} %. A lower learning_rate, or a lower weight of its terms, may help"
            )
        if self.start is not None and top1 < self.start:
            found.append(
                f"is worse than the weights that it began with: {top1:.2f} % of the validation images, from "
                f"{self.start:.2f} %. A lower learning_rate may help"
            )
        return found


def train(trainings: list[StageTraining], views: Views | None = None) -> list[Artefact | Exception]:
    """Train, several side by side on the same batches; where there are several, one that fails leaves its error.

    Args:
        trainings: of one section of a recipe, whose batches they share.
        views: of the training images, if they are fixed.
    """
    first = trainings[0]
    experiment, section = first.experiment, first.section
    device, which = experiment.fabric.device, (collectives.rank(), collectives.world())
    batches = Batches(
        experiment.data.train, section.batch_size, section.seed, experiment.augment, device, views, *which
    )
    if section.batch_size % (section.accumulate * batches.world):
        raise InputError(
            f"a batch of {section.batch_size} images cannot be divided into {section.accumulate} parts of each of "
            f"{batches.world} processes; choose a batch_size that is a multiple of {section.accumulate * batches.world}"
        )
    if batches.world > 1:
        for training in trainings:
            _leave_out_unused(training, batches)
    if section.weights is not None and first.method.classifies:
        trainings = [replace(training, start=training.validate().get("top1")) for training in trainings]
    trainers = [training.trainer(len(batches)) for training in trainings]
    if len(trainings) > 1:
        experiment.say(f"side by side  {', '.join(training.folder.name for training in trainings)}")
    try:
        fit(trainers, batches, section.accumulate, experiment.recipe.checkpoint.interval)
    except Interrupted as error:
        if error.signal != signals.REQUEUE or not experiment.recipe.checkpoint.requeue:
            raise
        raise Interrupted(f"{error}\n{collectives.on_rank_zero(signals.requeue)}", error.signal) from None
    experiment.data.check_unchanged()
    if len(trainings) == 1:
        return [trainings[0].deliver(trainers[0])]
    return [
        training.deliver(trainer) if trainer.error is None else trainer.error
        for training, trainer in zip(trainings, trainers, strict=True)
    ]


def _leave_out_unused(training: StageTraining, batches: Batches) -> None:
    first = next(batches.epoch(0))
    views = None if first.views is None else first.views[:2]
    indices = None if first.indices is None else first.indices[:2]
    some = Batch(first.images[:2], first.labels[:2], indices, views)
    unused = leave_out_unused(training.method.train(), some)
    if unused:
        shown = ", ".join(unused[:3]) + (", …" if len(unused) > 3 else "")
        name = training.folder.name
        training.experiment.say(f"{name}  is trained without {shown}, which its loss does not depend on")


def train_one(training: StageTraining, views: Views | None = None) -> Artefact:
    """Train one stage; what ends it early is raised."""
    (done,) = train([training], views)
    assert isinstance(done, Artefact)
    return done
