"""The training of one method: forward and backward passes, optimiser steps, model selection, checkpoint and log."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from factor_transfer.data import Batch
from factor_transfer.distributed import collectives
from factor_transfer.errors import Diverged, InputError, first_line, is_of_memory
from factor_transfer.methods import Distillation, Losses, Method, Teacher, load_trained_state, trained_state
from factor_transfer.methods.base import trained_buffers
from factor_transfer.state_dicts import State
from factor_transfer.training.checkpoint import is_under_way, latest_training, save_training
from factor_transfer.training.log import RunLog
from factor_transfer.training.meters import Meters
from factor_transfer.training.networks.average import WeightAverage
from factor_transfer.training.networks.compile import compile_networks, eagerly, set_eager
from factor_transfer.training.networks.sync_batch_norm import synchronise
from factor_transfer.training.nonfinite import GradientGuard, diverged, nonfinite_names
from factor_transfer.training.optim import Optimization

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Seconds between two fetches of the losses to the host. Each fetch makes a GPU wait.
_FETCH_INTERVAL_S = 0.5


@dataclass(frozen=True)
class Selection:
    """The rule by which a training selects the epoch whose weights it delivers.

    Attributes:
        metric: the validation figure to compare, such as ``"top1"``.
        highest: whether the highest value is the best one. Otherwise it is the lowest.
        keep: the epoch to select, ``"best"`` for the best on the validation split (the latest of equals) or ``"last"``.
    """

    metric: str
    highest: bool
    keep: Literal["best", "last"]

    def better(self, figures: Mapping[str, float], best: Mapping[str, float] | None) -> bool:
        """Whether an epoch's figures replace the best so far."""
        if self.keep == "last" or best is None or self.metric not in figures:
            return True
        new, old = figures[self.metric], best[self.metric]
        return new >= old if self.highest else new <= old


@dataclass(frozen=True)
class Outcome:
    """The result of a training.

    Attributes:
        state: the weights of the product after the selected epoch.
        epoch: the selected epoch, counted from 1.
        figures: the validation figures of that epoch.
        seconds: the duration of the training, without interruptions.
        last: the weights after the last epoch, if another epoch was selected.
        connectors: the weights of the modules that terms have trained beside the student, after the selected epoch;
            ``None`` if there are none.
    """

    state: State
    epoch: int
    figures: dict[str, float]
    seconds: float
    last: State | None = None
    connectors: State | None = None


class Trainer:
    """The training of one method; it resumes from its checkpoint if there is one.

    Args:
        fabric: the device, precision and processes of the training.
        method: the method to train, see ``methods.base``. Everything that is not inside a ``Frozen`` is trained.
        product: the part of ``method`` whose weights are the result, such as the student.
        epochs: the number of epochs of the whole training.
        steps: the number of steps per epoch.
        optimization: the settings of optimiser, schedule and clipping.
        validate: a function that computes the figures on the validation split after each epoch. It returns an empty
            dict if there is no validation split.
        selection: the rule that selects the resulting epoch.
        checkpoint: the path of the checkpoint that ``save`` writes.
        log: the log of the steps and epochs.
        compiled: whether to compile the networks, if that is possible.
        max_skipped: the number of steps that may be skipped because their gradient is not finite.
        sync_batch_norm: whether batch norm takes its statistics from the images of all processes.
        ema_decay: the decay of the moving average of the product's weights, which is validated and delivered in place
            of the weights; ``None`` for no average.

    Attributes:
        at: the number of steps done, over all epochs.
        saved: the number of steps done when the checkpoint was written.
        compiled: whether the networks are compiled, or will be in the first step.
        error: the error that ended this training early while other trainings continued, if any.

    Raises:
        InputError: if the checkpoint is damaged or belongs to another training.
    """

    def __init__(
        self,
        fabric: "Fabric",
        method: Method,
        product: nn.Module,
        *,
        epochs: int,
        steps: int,
        optimization: Optimization,
        validate: Callable[[], dict[str, float]],
        selection: Selection,
        checkpoint: Path,
        log: RunLog,
        compiled: bool = False,
        max_skipped: int = 0,
        sync_batch_norm: bool = False,
        ema_decay: float | None = None,
    ) -> None:
        self.fabric, self.method, self.product = fabric, method, product
        self.epochs, self.steps = epochs, steps
        self.validate, self.selection, self.checkpoint, self.log = validate, selection, checkpoint, log
        if sync_batch_norm and collectives.world() > 1:
            synchronise(method)
        self._parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
        optimizer, self.scheduler = optimization.build(self._parameters, steps, epochs)
        self.model, self.optimizer = fabric.setup(method, optimizer)
        self.clip_norm = optimization.clip_norm
        self._average = None if ema_decay is None else WeightAverage(product, ema_decay)
        self.guard = GradientGuard(method, max_skipped)
        self.compiled, self._needs_compiling = compiled, compiled
        self._teachers = [module for module in method.modules() if isinstance(module, Teacher)]
        self.at, self.saved = 0, 0
        self.seconds = 0.0  # of complete epochs
        self.meters = Meters(self.learning_rate)
        self.best: Outcome | None = None
        self.error: Exception | None = None
        if is_under_way(checkpoint):
            self._resume()
            self.saved = self.at
        log.start(epochs, steps, self.at)

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return float(self.scheduler.get_last_lr()[0])

    def begin_epoch(self, epoch: int) -> None:
        """Prepare for the steps of an epoch, counted from 0, or for the remaining ones after resuming."""
        self.method.begin_epoch(epoch)
        self.model.train()
        if self.at % self.steps == 0:
            self.meters = Meters(self.learning_rate)
        self._parts: list[Losses] = []
        self._weights: list[float] = []
        self._fetched = time.perf_counter()

    def forward_backward(self, batch: Batch, weight: float, seed: int, last: bool) -> None:
        """Accumulate the gradient of a step's batch, or of one part of it.

        Args:
            batch: the images and labels, on the device.
            weight: the weight of this part's mean loss in the loss of the step.
            seed: the seed of the random numbers of this pass, such as those of dropout.
            last: whether this is the last part of the step. Processes exchange gradients only after the last part.

        Raises:
            InputError: if the memory is not sufficient.
        """
        if self._needs_compiling:
            self._compile(batch)
        self.guard.save_buffers()
        start, reused = time.perf_counter(), self._reused_seconds()
        torch.manual_seed(seed)
        # Networks are compiled for one batch size; a smaller last batch runs eagerly.
        other_size = self.compiled and len(batch.labels) != self._compiled_size
        sync = nullcontext() if last or collectives.world() == 1 else self.fabric.no_backward_sync(self.model)
        with self._explains_memory(len(batch.labels)), sync:
            with eagerly(other_size):
                losses: Losses = self.model(*batch)
            self.fabric.backward(losses["loss"] if weight == 1 else losses["loss"] * weight)
        # Cloned, because a compiled step may overwrite the memory of its outputs in the next step.
        self._parts.append({name: value.detach().clone() for name, value in losses.items()})
        self._weights.append(weight)
        self.meters.seconds += time.perf_counter() - start + self._reused_seconds() - reused

    def optimizer_step(self, images: int, loading_seconds: float) -> None:
        """Update the weights by the gradient, and advance the schedule.

        Args:
            images: the number of images of the step, over all processes.
            loading_seconds: the time to load the batch, in seconds.

        Raises:
            Diverged: if a loss is not finite, or too many steps were skipped.
        """
        start = time.perf_counter()
        accepted = self.guard.accept()
        if accepted:
            if self.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(self._parameters, self.clip_norm)
            self.optimizer.step()
            if self._average is not None:
                self._average.update()
            self.meters.add(self._parts, self._weights)
        self.optimizer.zero_grad()
        with warnings.catch_warnings():
            if not accepted:  # PyTorch warns if the schedule advances before the first optimiser step
                warnings.simplefilter("ignore", UserWarning)
            self.scheduler.step()
        self._parts, self._weights = [], []
        epoch, step = divmod(self.at, self.steps)
        self.at += 1
        fetch = start - self._fetched > _FETCH_INTERVAL_S or step + 1 == self.steps
        if fetch:
            with self._explains_divergence():
                self.meters.fetch(epoch)
            self._fetched = time.perf_counter()
        self.meters.images += images
        self.meters.seconds += time.perf_counter() - start + loading_seconds
        if fetch:
            self.log.step(self.at, self.meters.means(), self.meters.images_per_second)

    def end_epoch(self, epoch: int, waiting_seconds: float) -> None:
        """Validate after the last step of an epoch, update the selected epoch, and log the figures.

        Args:
            epoch: the epoch, counted from 0.
            waiting_seconds: the time that the training waited for images, in seconds.

        Raises:
            Diverged: if a loss, a weight or a validation figure is not finite.
        """
        with self._explains_divergence():
            self.meters.reduce(epoch, self.fabric.device)
        self.seconds += self.meters.seconds
        collectives.broadcast_from_rank_zero([value for _, value in trained_buffers(self.method)])
        if self._average is not None:
            self._average.synchronise()
        with self._delivered_weights(), eagerly(self.compiled):
            validation = self.validate()
        self._check_finite(epoch, validation)
        if self.selection.better(validation, self.best.figures if self.best else None):
            connectors = _copy(self.method.connectors()) if isinstance(self.method, Distillation) else {}
            self.best = Outcome(
                self._weights_to_deliver(), epoch + 1, validation, self.seconds, connectors=connectors or None
            )
        figures = self.meters.figures(waiting_seconds)
        if self.guard.skipped:
            figures["skipped"] = self.guard.skipped
        self.log.epoch(epoch, {**figures, **{f"validation_{key}": value for key, value in validation.items()}})

    def save(self) -> None:
        """Write a checkpoint with everything that is needed to resume.

        Raises:
            Diverged: if a loss or a weight is not finite. The last checkpoint is kept.
        """
        if self.at == self.saved:
            return
        epoch, step = divmod(self.at, self.steps)
        if step:
            with self._explains_divergence():
                self.meters.reduce(epoch, self.fabric.device)
            self._check_finite(epoch)
        if not collectives.rank():
            state = {
                "epoch": epoch,
                "step": step,
                "seconds": self.seconds,
                "best": vars(self.best) if self.best else None,
                "running": self.meters.state() if step else None,
                "method": trained_state(self.method),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "skipped": self.guard.skipped,
                "average": self._average.state() if self._average else None,
            }
            save_training(self.checkpoint, state)
        self.saved = self.at

    def _resume(self) -> None:
        state, note = latest_training(self.checkpoint)
        if note:
            self.log.say(note)
        try:
            load_trained_state(self.method, state["method"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            self.guard.skipped = state["skipped"]
            if self._average is not None:
                self._average.load(**state["average"])
            self.at, self.seconds = state["epoch"] * self.steps + state["step"], state["seconds"]
            self.best = Outcome(**state["best"]) if state["best"] else None
            if state["running"]:
                self.meters = Meters(**state["running"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"checkpoint {self.checkpoint} belongs to another training: {first_line(error)}\n"
                "Add --fresh to restart the stage"
            ) from error

    def outcome(self) -> Outcome:
        """The result of the training.

        Raises:
            InputError: if no epoch was trained.
            Exception: the error that ended the training early, if there is one.
        """
        if self.error is not None:
            raise self.error
        if self.best is None:
            raise InputError(f"{self.log.stage} has no epochs to train")
        last = None if self.best.epoch == self.epochs else self._weights_to_deliver()
        return replace(self.best, seconds=self.seconds, last=last)

    def stop(self) -> None:
        """Remove the progress bar, and undo the compilation of the networks."""
        self.log.stop()
        set_eager(self.method)

    def _delivered_weights(self) -> AbstractContextManager[None]:
        """A context in which the product has the weights to deliver: their average, if there is one."""
        return nullcontext() if self._average is None else self._average.in_use()

    def _weights_to_deliver(self) -> State:
        with self._delivered_weights():
            return _copy(self.product.state_dict())

    def _compile(self, batch: Batch) -> None:
        """Compile the networks before the first step, for the size of ``batch``. Only the last batch may be smaller."""
        self._needs_compiling, self._compiled_size = False, len(batch.labels)
        reason = compile_networks(self.fabric, self.method, batch)
        failed = collectives.all_reduce_max([reason is not None], self.fabric.device)[0]
        if failed and reason is None:
            set_eager(self.method)
            reason = "compiling failed in another process"
        self.compiled = reason is None
        if reason:
            self.log.say(f"{self.log.stage}  is not compiled, which is slower but gives the same results: {reason}")

    def _reused_seconds(self) -> float:
        """The duration of the shared teacher's passes that this method reused. Alone, it would have to run them."""
        return sum(teacher.reused_seconds for teacher in self._teachers)

    @contextmanager
    def _explains_memory(self, images: int) -> Iterator[None]:
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not is_of_memory(error):
                raise
            raise InputError(
                f"out of memory in {self.log.stage}, in a step of {images} images; set accumulate=2 or more in the "
                f"recipe's [{self.log.stage.split('-')[0]}], which divides each step into parts and gives the same "
                f"gradient, whereas a smaller batch_size changes the training ({first_line(error)})"
            ) from error

    @contextmanager
    def _explains_divergence(self) -> Iterator[None]:
        try:
            yield
        except Diverged as error:
            raise self._diverged(str(error)) from None

    def _check_finite(self, epoch: int, validation: Mapping[str, float] | None = None) -> None:
        """Refuse weights that became non-finite in the last step, whose effect on the loss is not visible yet."""
        names = nonfinite_names(self.method, validation or {})
        if names:
            more = ", …" if names[3:] else ""
            raise self._diverged(f"not finite at the end of epoch {epoch + 1}: {', '.join(names[:3])}{more}")

    def _diverged(self, where: str) -> Diverged:
        return diverged(where, str(self.checkpoint) if self.saved else None)


def _copy(state: Mapping[str, Tensor]) -> State:
    return {key: value.detach().cpu().clone() for key, value in state.items()}
