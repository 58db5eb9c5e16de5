"""The life of a stage: made ready, trained, delivered; and required by the stages after it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from factor_transfer.config.recipe import Training
from factor_transfer.data import Batches, Views
from factor_transfer.distributed import collectives, signals
from factor_transfer.errors import InputError, Interrupted
from factor_transfer.files import State, remove_unfinished
from factor_transfer.methods import Method, ParaphraserTraining
from factor_transfer.models import Normalize, macs
from factor_transfer.pipeline import artefact
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.lock import hold
from factor_transfer.training.checkpoint import is_under_way
from factor_transfer.training.compile import worthwhile
from factor_transfer.training.evaluate import mean_losses, top
from factor_transfer.training.log import RunLog, duration
from factor_transfer.training.loop import fit
from factor_transfer.training.trainer import Selection, Trainer


@contextmanager
def in_work_dir(experiment: Experiment) -> Iterator[None]:
    """The work dir is this recipe's and this process's alone. May be nested.

    Raises:
        InputError: it is another's.
    """
    collectives.on_rank_zero(lambda: artefact.claim(experiment.work_dir, experiment.recipe.name))
    with hold(experiment.work_dir):
        yield


def begin(experiment: Experiment, folder: Path, inputs: Mapping[str, Any], fresh: bool) -> Artefact | None:
    """The stage if it is up to date. Otherwise its folder is made ready, to start or to go on."""
    return collectives.on_rank_zero(lambda: _begin(experiment, folder, inputs, fresh))


def _begin(experiment: Experiment, folder: Path, inputs: Mapping[str, Any], fresh: bool) -> Artefact | None:
    name = folder.name
    if not (folder / artefact.RECORD).exists():
        if folder.exists() and any(folder.iterdir()):  # of unknown origin: not to be gone on with
            experiment.say(f"{name}  {folder} has no {artefact.RECORD}; it is kept in {artefact.archive(folder)}")
        artefact.begin(folder, inputs)
        return None
    remove_unfinished(folder)
    changed = [] if fresh else artefact.differences(folder, inputs)
    if fresh or changed:
        kept = artefact.archive(folder)
        why = "made anew" if fresh else "made anew, its inputs differ (" + "; ".join(changed) + ")"
        experiment.say(f"{name}  {why}; the former one is kept in {kept}")
        artefact.begin(folder, inputs)
        return None
    done = artefact.find(folder)
    if done:
        experiment.say(f"{name}  up to date  {done.weights}")
    elif is_under_way(folder / artefact.RUNNING):
        experiment.say(f"{name}  goes on from {folder / artefact.RUNNING}")
    return done


def finish(folder: Path, state: State, record: Mapping[str, Any], last: State | None = None) -> Artefact:
    """``artefact.finish``, by one process for all."""
    return collectives.on_rank_zero(lambda: artefact.finish(folder, state, record, last))


def require(experiment: Experiment, name: str, command: str, inputs: Callable[[], Mapping[str, Any]]) -> Artefact:
    """An earlier stage, which must be finished and made from the same inputs."""
    return collectives.on_rank_zero(lambda: _require(experiment, name, command, inputs))


def _require(experiment: Experiment, name: str, command: str, inputs: Callable[[], Mapping[str, Any]]) -> Artefact:
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


@dataclass(frozen=True)
class StageTraining:
    """A training, and what its artefact will be.

    Attributes:
        experiment: whose stage it is.
        folder: of the stage.
        section: of the recipe, which says how it is trained.
        method: what is trained.
        product: the part of it that is delivered.
        record: what ``stage.json`` says of it.
    """

    experiment: Experiment
    folder: Path
    section: Training
    method: Method
    product: nn.Module
    record: Mapping[str, Any]

    def trainer(self, steps: int) -> Trainer:
        """The training, ready to start or to go on.

        Args:
            steps: an epoch.
        """
        metric, highest = ("loss", False) if isinstance(self.method, ParaphraserTraining) else ("top1", True)
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
        experiment, data = self.experiment, self.experiment.data
        if not len(data.validation):
            return {}
        if isinstance(self.method, ParaphraserTraining):
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
        # A paraphraser is small beside its teacher, which is not trained.
        cost = (
            0 if isinstance(self.method, ParaphraserTraining) else macs(self.product, experiment.examples[:1].float())
        )
        return worthwhile(cost, images, images // self.section.batch_size, experiment.fabric.device)

    def deliver(self, trainer: Trainer) -> Artefact:
        """Leave what was trained in the stage's folder."""
        outcome = trainer.outcome()
        figures = {"epoch": outcome.epoch, "validation": outcome.figures, "seconds": outcome.seconds}
        record = {"stage": self.folder.name, **self.record, **figures}
        done = finish(self.folder, outcome.state, record, outcome.last)
        self.experiment.say(
            f"{self.folder.name}  done in {duration(outcome.seconds)}, epoch {outcome.epoch} kept  {done.weights}"
        )
        return done


def train(courses: list[StageTraining], views: Views | None = None) -> list[Artefact | Exception]:
    """Train, several side by side on the same batches; where there are several, one that fails leaves its error.

    Args:
        courses: of one section of a recipe, whose batches they share.
        views: of the training images, if they are fixed.
    """
    first = courses[0]
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
    trainers = [course.trainer(len(batches)) for course in courses]
    if len(courses) > 1:
        experiment.say(f"side by side  {', '.join(course.folder.name for course in courses)}")
    try:
        fit(trainers, batches, section.accumulate, experiment.recipe.checkpoint.interval)
    except Interrupted as error:
        if error.signal != signals.REQUEUE or not experiment.recipe.checkpoint.requeue:
            raise
        raise Interrupted(f"{error}\n{collectives.on_rank_zero(signals.requeue)}", error.signal) from None
    experiment.data.check_unchanged()
    if len(courses) == 1:
        return [first.deliver(trainers[0])]
    return [
        course.deliver(trainer) if trainer.error is None else trainer.error
        for course, trainer in zip(courses, trainers, strict=True)
    ]
