"""The training of one method: forward and backward passes, optimiser steps, its best epoch, its checkpoint, its log."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from factor_transfer.data import Batch
from factor_transfer.distributed import collectives
from factor_transfer.errors import Diverged, InputError, first_line, is_of_memory
from factor_transfer.files import State
from factor_transfer.methods import Losses, Method, Teacher, load_trained_state, trained_state
from factor_transfer.methods.base import trained_buffers
from factor_transfer.training.checkpoint import is_under_way, latest_training, save_training
from factor_transfer.training.compile import compile_networks, eagerly, set_eager
from factor_transfer.training.log import RunLog
from factor_transfer.training.meters import Meters
from factor_transfer.training.nonfinite import GradientGuard, diverged, nonfinite_names
from factor_transfer.training.optim import Optimization
from factor_transfer.training.sync_batch_norm import synchronise

# Seconds between two times that losses are fetched to the host: a GPU need not wait for the screen.
_FETCH_INTERVAL_S = 0.5


@dataclass(frozen=True)
class Selection:
    """The rule by which a training selects the epoch whose weights it delivers.

    Attributes:
        metric: the validation figure to compare, such as ``"top1"``.
        highest: whether the highest value is the best one, or the lowest.
        keep: ``"best"`` for the best epoch on the validation split (the latest of equals), or ``"last"``.
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
    """What a training delivers.

    Attributes:
        state: the weights of the product after the selected epoch.
        epoch: the selected epoch, from 1.
        figures: the validation figures of that epoch.
        seconds: the duration of the training, over all sittings.
        last: the weights after the last epoch, if another one was selected.
    """

    state: State
    epoch: int
    figures: dict[str, float]
    seconds: float
    last: State | None = None


class Trainer:
    """The training of one method; it resumes from its checkpoint if there is one.

    Args:
        fabric: device, precision and processes.
        method: the method to train, see ``methods.base``. Everything that is not inside a ``Frozen`` is trained.
        product: the part of ``method`` that is wanted in the end, such as the student.
        epochs: the length of the whole training.
        steps: the number of steps per epoch.
        optimization: optimiser, schedule and clipping.
        validate: computes the figures on the validation split after each epoch; an empty dict if there is none.
        selection: which epoch is delivered.
        checkpoint: the file that ``save`` writes.
        log: receives every step and epoch.
        compiled: whether to compile the networks, where that works.
        max_skipped: the number of steps with a gradient that is not finite that may be skipped.
        sync_batch_norm: whether batch norm takes its statistics from the images of all processes.

    Attributes:
        at: the number of steps done, of all epochs.
        saved: the number of steps that the checkpoint holds.
        compiled: whether the networks are compiled, or will be.
        error: what ended this training early, where others went on beside it.

    Raises:
        InputError: the checkpoint is damaged, or belongs to another training.
    """

    def __init__(
        self,
        fabric: Fabric,
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
        self.guard = GradientGuard(method, max_skipped)
        self.compiled, self._uncompiled_yet = compiled, compiled
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
        """Prepare for the steps of an epoch (from 0), or for the rest of them."""
        self.method.begin_epoch(epoch)
        self.model.train()
        if self.at % self.steps == 0:
            self.meters = Meters(self.learning_rate)
        self._parts: list[Losses] = []
        self._weights: list[float] = []
        self._fetched = time.perf_counter()

    def forward_backward(self, batch: Batch, weight: float, seed: int, last: bool) -> None:
        """Add the gradient of a step's batch, or of one part of it.

        Args:
            batch: images and labels on the device.
            weight: the weight of this part's mean loss in the loss of the step.
            seed: the seed of everything drawn at random in this pass, such as dropout.
            last: whether this is the last part of the step; processes exchange gradients after it alone.

        Raises:
            InputError: there is too little memory.
        """
        if self._uncompiled_yet:
            self._compile(batch)
        self.guard.remember()
        began, borrowed = time.perf_counter(), self._borrowed()
        torch.manual_seed(seed)
        # Compiled networks are made for one size of batch: a last one of another size runs as it is.
        other_size = self.compiled and len(batch.labels) != self._compiled_size
        gathering = nullcontext() if last or collectives.world() == 1 else self.fabric.no_backward_sync(self.model)
        with self._explains_memory(len(batch.labels)), gathering:
            with eagerly(other_size):
                losses: Losses = self.model(*batch)
            self.fabric.backward(losses["loss"] if weight == 1 else losses["loss"] * weight)
        # Tensors of their own: a compiled step writes its next losses where these are.
        self._parts.append({name: value.detach().clone() for name, value in losses.items()})
        self._weights.append(weight)
        self.meters.seconds += time.perf_counter() - began + self._borrowed() - borrowed

    def optimizer_step(self, images: int, loading_seconds: float) -> None:
        """Update the weights by the gradient, and advance the schedule.

        Args:
            images: the number of images of the step, in all processes.
            loading_seconds: the time that it took to make the batch.

        Raises:
            Diverged: a loss is not finite, or too many steps were skipped.
        """
        began = time.perf_counter()
        accepted = self.guard.accept()
        if accepted:
            if self.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(self._parameters, self.clip_norm)
            self.optimizer.step()
            self.meters.add(self._parts, self._weights)
        self.optimizer.zero_grad()
        with warnings.catch_warnings():
            if not accepted:  # PyTorch warns of a schedule that advances before the weights do
                warnings.simplefilter("ignore", UserWarning)
            self.scheduler.step()
        self._parts, self._weights = [], []
        epoch, step = divmod(self.at, self.steps)
        self.at += 1
        fetch = began - self._fetched > _FETCH_INTERVAL_S or step + 1 == self.steps
        if fetch:
            with self._explains_divergence():
                self.meters.fetch(epoch)
            self._fetched = time.perf_counter()
        self.meters.images += images
        self.meters.seconds += time.perf_counter() - began + loading_seconds
        if fetch:
            self.log.step(self.at, self.meters.means(), self.meters.images_per_second)

    def end_epoch(self, epoch: int, waiting_seconds: float) -> None:
        """Validate after the last step of an epoch, select, and log.

        Args:
            epoch: the epoch, from 0.
            waiting_seconds: the time that the training waited for images.

        Raises:
            Diverged: a loss, a weight or a validation figure is not finite.
        """
        with self._explains_divergence():
            self.meters.reduce(epoch, self.fabric.device)
        self.seconds += self.meters.seconds
        collectives.broadcast_from_rank_zero([value for _, value in trained_buffers(self.method)])
        with eagerly(self.compiled):
            validation = self.validate()
        self._check_finite(epoch, validation)
        if self.selection.better(validation, self.best.figures if self.best else None):
            self.best = Outcome(_copy(self.product.state_dict()), epoch + 1, validation, self.seconds)
        figures = self.meters.figures(waiting_seconds)
        if self.guard.skipped:
            figures["skipped"] = self.guard.skipped
        self.log.epoch(epoch, {**figures, **{f"validation_{key}": value for key, value in validation.items()}})

    def save(self) -> None:
        """Write the checkpoint: everything that is needed to resume from here.

        Raises:
            Diverged: a loss or a weight is not finite; the checkpoint written before is kept.
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
            self.at, self.seconds = state["epoch"] * self.steps + state["step"], state["seconds"]
            self.best = Outcome(**state["best"]) if state["best"] else None
            if state["running"]:
                self.meters = Meters(**state["running"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"checkpoint {self.checkpoint} is of another training: {first_line(error)}\n"
                "Add --fresh to start the stage anew"
            ) from error

    def outcome(self) -> Outcome:
        """What the training delivers.

        Raises:
            Exception: the error that ended it early.
        """
        if self.error is not None:
            raise self.error
        if self.best is None:
            raise InputError(f"{self.log.stage} has no epoch to train")
        last = None if self.best.epoch == self.epochs else _copy(self.product.state_dict())
        return replace(self.best, seconds=self.seconds, last=last)

    def stop(self) -> None:
        """Remove the progress bar, and what compiling put into the networks."""
        self.log.stop()
        set_eager(self.method)

    def _compile(self, batch: Batch) -> None:
        """Compile before the first step. ``batch`` has the size of all batches but, perhaps, the last."""
        self._uncompiled_yet, self._compiled_size = False, len(batch.labels)
        reason = compile_networks(self.fabric, self.method, batch)
        failed = collectives.all_reduce_max([reason is not None], self.fabric.device)[0]
        if failed and reason is None:
            set_eager(self.method)
            reason = "another process could not"
        self.compiled = reason is None
        if reason:
            self.log.say(f"{self.log.stage}  is not compiled, which makes it slower, not different: {reason}")

    def _borrowed(self) -> float:
        """The seconds of a shared teacher's passes that other methods paid for; alone, this one would have to."""
        return sum(teacher.reused_seconds for teacher in self._teachers)

    @contextmanager
    def _explains_memory(self, images: int) -> Iterator[None]:
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not is_of_memory(error):
                raise
            raise InputError(
                f"out of memory in {self.log.stage}, in a step of {images} images: accumulate=2 in the "
                f"recipe's [{self.log.stage.split('-')[0]}], or a larger number, divides each step and comes to the "
                f"same; a smaller batch_size does not ({first_line(error)})"
            ) from error

    @contextmanager
    def _explains_divergence(self) -> Iterator[None]:
        try:
            yield
        except Diverged as error:
            raise self._diverged(str(error)) from None

    def _check_finite(self, epoch: int, validation: Mapping[str, float] | None = None) -> None:
        """Refuse weights that the last step broke: no loss has told of it yet."""
        broken = nonfinite_names(self.method, validation or {})
        if broken:
            more = ", …" if broken[3:] else ""
            raise self._diverged(f"not finite at the end of epoch {epoch + 1}: {', '.join(broken[:3])}{more}")

    def _diverged(self, where: str) -> Diverged:
        return diverged(where, str(self.checkpoint) if self.saved else None)


def _copy(state: Mapping[str, Tensor]) -> State:
    return {key: value.detach().cpu().clone() for key, value in state.items()}
