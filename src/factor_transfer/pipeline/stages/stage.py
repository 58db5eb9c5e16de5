"""The functions that all stages share: starting, training and finishing a stage, and finding an earlier one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from torch import nn

from factor_transfer.config.recipe import Network, Student, Training
from factor_transfer.data import UNLABELLED, Batches, Mixture
from factor_transfer.distributed import collectives, signals
from factor_transfer.errors import InputError, Interrupted
from factor_transfer.files import remove_unfinished
from factor_transfer.methods import Distillation, Method, Supervised
from factor_transfer.models import Normalize, macs
from factor_transfer.pipeline import artefact
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.pipeline.experiment import Experiment, Stage, program
from factor_transfer.pipeline.lock import hold, still_held
from factor_transfer.pipeline.stages.threads import with_threads
from factor_transfer.pipeline.weights.trial import leave_out_unused
from factor_transfer.state_dicts import State
from factor_transfer.training.checkpoint import is_under_way
from factor_transfer.training.evaluate import at_chance, mean_losses, top
from factor_transfer.training.log import RunLog, duration
from factor_transfer.training.loop import fit
from factor_transfer.training.networks.compile import worthwhile
from factor_transfer.training.trainer import Selection, Trainer

P = ParamSpec("P")
R = TypeVar("R")


def in_work_dir(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function to hold the work dir of its experiment, so that no other recipe or process uses it meanwhile.

    The function's first argument is the experiment, or a list of experiments of one work dir. Calls may be nested.

    Raises:
        InputError: if the work dir belongs to another recipe, or another process holds it.
    """

    @wraps(function)
    def holding(*args: P.args, **kwargs: P.kwargs) -> R:
        first: Any = args[0]
        experiment: Experiment = first if isinstance(first, Experiment) else first[0]
        # The owner is checked before locking, since the lock would leave a file in a folder that is not this recipe's.
        collectives.on_rank_zero(lambda: artefact.check_owner(experiment.work_dir, experiment.recipe.name))
        with hold(experiment.work_dir):
            collectives.on_rank_zero(lambda: artefact.claim(experiment.work_dir, experiment.recipe.name))
            return function(*args, **kwargs)

    return holding


@collectives.by_rank_zero
def start_stage(
    experiment: Experiment, folder: Path, inputs: Mapping[str, Any], fresh: bool = False
) -> Artefact | None:
    """Return a stage if it is up to date; otherwise prepare its folder for starting or resuming.

    Args:
        experiment: the experiment.
        folder: the stage's folder.
        inputs: the inputs of the stage, see ``provenance``.
        fresh: whether to start again even if the stage is up to date.

    Returns:
        The finished stage; ``None`` if it must be trained.
    """
    name = folder.name
    if not (folder / artefact.RECORD).exists():
        if folder.exists() and any(folder.iterdir()):  # its origin is unknown, so it cannot be resumed
            experiment.say(f"{name}  {folder} has no {artefact.RECORD}; it was moved to {artefact.archive(folder)}")
        artefact.begin(folder, inputs)
        return None
    remove_unfinished(folder)
    changed = [] if fresh else artefact.differences(folder, inputs)
    if fresh or changed:
        archived = artefact.archive(folder)
        reason = "runs again" if fresh else "runs again because its inputs changed (" + "; ".join(changed) + ")"
        experiment.say(f"{name}  {reason}; the previous one was moved to {archived}")
        artefact.begin(folder, inputs)
        return None
    done = artefact.find(folder)
    if done:
        experiment.say(f"{name}  up to date  {done.weights}")
    elif is_under_way(folder / artefact.RUNNING):
        experiment.say(f"{name}  resumes from {folder / artefact.RUNNING}")
    return done


@collectives.by_rank_zero
def finish_stage(
    folder: Path,
    state: State,
    record: Mapping[str, Any],
    last: State | None = None,
    connectors: State | None = None,
) -> Artefact:
    """Write a stage's weights and record; see ``artefact.finish``."""
    still_held(folder.parent)
    return artefact.finish(folder, state, record, last, connectors)


@collectives.by_rank_zero
def find_stage(experiment: Experiment, name: str, command: str, inputs: Callable[[], Mapping[str, Any]]) -> Artefact:
    """An earlier stage, finished and up to date.

    Args:
        experiment: the experiment.
        name: the stage's name.
        command: the command that trains the stage, for messages.
        inputs: a function that computes the stage's current inputs.

    Raises:
        InputError: if the stage is missing or not finished, or has other inputs.
    """
    folder = experiment.work_dir / name
    remedy = f"To train it: {program()} {command} {experiment.command}"
    done = artefact.find(folder)
    if done is None:
        state = "is not finished" if (folder / artefact.RECORD).exists() else "is missing"
        raise InputError(f"the {name} {state}: {folder}\n{remedy}")
    changed = artefact.differences(folder, inputs())
    if changed:
        lines = "\n  ".join(changed)
        raise InputError(f"the {name} in {folder} is not the one of this recipe:\n  {lines}\n{remedy}")
    return done


@dataclass(frozen=True)
class StageTraining:
    """The training of a stage, with the parts of its future artefact.

    Attributes:
        experiment: the experiment.
        folder: the stage's folder.
        section: the recipe's section of the stage, with the settings of the training.
        method: the method to train.
        product: the part of the method whose weights are saved.
        record: the content of ``stage.json``, without the figures.
        start: the validation top-1 of the initial weights, in percent; ``None`` if they are random.
        stage: the stage, which determines the images.
    """

    experiment: Experiment
    folder: Path
    section: Training
    method: Method
    product: nn.Module
    record: Mapping[str, Any]
    start: float | None = None
    stage: Stage = "student"

    @property
    def is_followed(self) -> bool:
        """Whether the student will be fine-tuned after this training."""
        return isinstance(self.section, Student) and self.section.finetune is not None

    @cached_property
    def batches(self) -> Batches:
        """The images that the method is trained on."""
        return self.experiment.batches(self.stage, has_terms=not isinstance(self.method, Supervised))

    def trainer(self) -> Trainer:
        """The trainer, ready to start or to resume."""
        metric, highest = ("top1", True) if self.method.classifies else ("loss", False)
        assert self.section.epochs is not None  # a stage with given weights is not trained
        recipe = self.experiment.recipe
        return Trainer(
            self.experiment.fabric,
            self.method,
            self.product,
            epochs=self.section.epochs,
            steps=len(self.batches),
            optimization=self.section.optimization,
            validate=self.validate,
            selection=Selection(metric, highest=highest, keep="last" if self.is_followed else self.section.keep),
            checkpoint=self.folder / artefact.RUNNING,
            log=RunLog(
                self.experiment.display,
                self.folder.name,
                self.folder / artefact.METRICS,
                recipe.log,
                recipe.model_dump(mode="json", exclude_none=True),
            ),
            compiled=self._compiled(),
            max_skipped=recipe.max_skipped if recipe.on_nonfinite == "skip" else 0,
            sync_batch_norm=recipe.sync_batch_norm,
            ema_decay=self.section.ema_decay if isinstance(self.section, Network) else None,
        )

    def validate(self) -> dict[str, float]:
        """Evaluate on the validation split: the metrics by name, empty if there is no such split."""
        collectives.on_rank_zero(lambda: still_held(self.experiment.work_dir))
        experiment, data = self.experiment, self.experiment.data
        if not len(data.validation):
            return {}
        if not self.method.classifies:
            return mean_losses(self.method, experiment.in_order(data.validation))
        normalize = Normalize(self.record["mean"], self.record["std"]).to(experiment.fabric.device)
        return top(*experiment.logits(self.product, data.validation, normalize))

    def _compiled(self) -> bool:
        requested, experiment = self.experiment.recipe.compile, self.experiment
        if experiment.recipe.sync_batch_norm and collectives.world() > 1:
            return False  # the compiler cannot trace communication between processes
        if requested != "auto":
            return requested == "on"
        assert self.section.epochs is not None
        images = self.section.epochs * sum(map(self.batches.size, range(len(self.batches))))
        # A paraphraser costs little compared with the frozen teacher.
        cost = macs(self.product, experiment.examples[:1].float()) if self.method.classifies else 0
        return worthwhile(cost, images, images // self.section.batch_size, experiment.fabric.device)

    def deliver(self, trainer: Trainer) -> Artefact:
        """Write the trained weights and their record into the stage's folder, and report any warnings."""
        outcome = trainer.outcome()
        figures = {"epoch": outcome.epoch, "validation": outcome.figures, "seconds": outcome.seconds}
        record = {"stage": self.folder.name, **self.record, **figures}
        done = finish_stage(self.folder, outcome.state, record, outcome.last, outcome.connectors)
        self.experiment.say(
            f"{self.folder.name}  done in {duration(outcome.seconds)}, epoch {outcome.epoch} saved  {done.weights}"
        )
        for warning in self.warnings(outcome.figures):
            self.experiment.say(f"Warning: {self.folder.name} {warning}")
        return done

    def warnings(self, figures: Mapping[str, float]) -> list[str]:
        """The warnings about a trained network: at chance level, or worse than its initial weights."""
        if "top1" not in figures or not self.method.classifies or self.is_followed:
            return []
        data, top1 = self.experiment.data, figures["top1"]
        found = []
        if at_chance(top1, len(data.classes), len(data.validation)):
            terms = ", or lower weights of its terms," if isinstance(self.method, Distillation) else ""
            found.append(
                f"has learned nothing: it classifies {top1:.2f} % of the validation images correctly, guessing "
                f"{100 / len(data.classes):.2f} %. More epochs or a lower learning_rate{terms} may help"
            )
        if self.start is not None and top1 < self.start:
            found.append(
                f"is worse than its initial weights: it classifies {top1:.2f} % of the validation images correctly, "
                f"down from {self.start:.2f} %. A lower learning_rate may help"
            )
        return found


def train(trainings: list[StageTraining]) -> list[Artefact | Exception]:
    """Train one or more stages side by side on the same batches.

    Args:
        trainings: trainings of the same section of a recipe, on the same images.

    Returns:
        The finished stage of each training. If there are several, a failed one is represented by its error.

    Raises:
        InputError: if ``batch_size`` cannot be divided among the processes and ``accumulate``.
        Interrupted: if the training was stopped by a signal.
    """
    first = trainings[0]
    experiment, section, batches = first.experiment, first.section, first.batches
    if batches.batch_size % (section.accumulate * batches.world):
        raise InputError(
            f"a batch of {batches.batch_size} images cannot be divided into {section.accumulate} equal parts for each "
            f"of {batches.world} processes; choose a batch_size that is a multiple of "
            f"{section.accumulate * batches.world}"
        )
    if batches.mixture is not None:
        _set_composition(trainings, batches, batches.mixture)
    else:
        for training in trainings:
            training.method.labelled_share = 1.0
    if batches.world > 1:
        for training in trainings:
            _leave_out_unused(training, batches)
    if section.weights is not None and first.method.classifies:
        trainings = [replace(training, start=training.validate().get("top1")) for training in trainings]
    if len(trainings) > 1:
        experiment.say(f"side by side  {', '.join(training.folder.name for training in trainings)}")
    assert section.epochs is not None
    # The last of several methods uses the teacher if any does.
    folders, method = [training.folder for training in trainings], trainings[-1].method
    size, steps = max(2, section.batch_size // section.accumulate), section.epochs * len(batches)
    try:
        with with_threads(experiment, folders, method, batches.labels, size, steps):
            trainers = [training.trainer() for training in trainings]
            fit(trainers, batches, section.accumulate, experiment.recipe.checkpoint.interval)
    except Interrupted as error:
        if error.signal != signals.REQUEUE or not experiment.recipe.checkpoint.requeue:
            raise
        raise Interrupted(str(error), error.signal, collectives.on_rank_zero(signals.requeue)) from None
    experiment.data.check_unchanged()
    if len(trainings) == 1:
        return [trainings[0].deliver(trainers[0])]
    return [
        training.deliver(trainer) if trainer.error is None else trainer.error
        for training, trainer in zip(trainings, trainers, strict=True)
    ]


def _set_composition(trainings: Sequence[StageTraining], batches: Batches, mixture: Mixture) -> None:
    """Tell the methods which share of a batch is labelled, and print the composition of the batches."""
    for training in trainings:
        if isinstance(training.method, Distillation):
            training.method.labelled_share = mixture.labelled_share
            needing = [name for name, term in training.method.named_terms() if term.needs_labels]
            if needing and not mixture.fewest_labelled(batches.world * training.section.accumulate):
                raise InputError(
                    f"{', '.join(needing)} needs a labelled image in each part of a batch, but a batch has only "
                    f"{mixture.labelled_per_batch} for {batches.world} processes and accumulate = "
                    f"{training.section.accumulate}; choose a lower student.unlabelled_share, or a larger batch_size"
                )
            if needing:
                training.experiment.say(f"{training.folder.name}  {', '.join(needing)} uses labelled images only")
    others = mixture.unlabelled_per_batch
    kinds = f"{mixture.labelled_per_batch} labelled" + (f" and {others} unlabelled" if others else "")
    names = ", ".join(training.folder.name for training in trainings)
    trainings[0].experiment.say(f"{names}  each batch has {kinds} images; {mixture.steps:,} steps per epoch")


def _leave_out_unused(training: StageTraining, batches: Batches) -> None:
    first = next(batches.epoch(0))
    # Two images with labels, if there are any, since some terms depend on no others.
    is_unlabelled = (batches.labels[first.indices] == UNLABELLED).int()
    rows = is_unlabelled.argsort(stable=True)[:2]
    unused = leave_out_unused(training.method.train(), first.select(rows))
    if unused:
        shown = ", ".join(unused[:3]) + (", …" if len(unused) > 3 else "")
        name = training.folder.name
        training.experiment.say(f"{name}  {shown} will not be trained: the loss does not depend on them")


def train_one(training: StageTraining) -> Artefact:
    """Train one stage; an error that ends it is raised."""
    (done,) = train([training])
    assert isinstance(done, Artefact)
    return done
