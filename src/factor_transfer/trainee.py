"""One method in training: where it is, its best epoch, its checkpoint and its log."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from factor_transfer import processes
from factor_transfer.checkpoint import State
from factor_transfer.compiling import eagerly, set_eager
from factor_transfer.data import Batch
from factor_transfer.errors import Diverged, InputError, first_line, is_of_memory
from factor_transfer.history import History
from factor_transfer.methods import Losses, Method, Teacher, trained_state
from factor_transfer.methods.base import trained_buffers
from factor_transfer.optimization import Optimization
from factor_transfer.runlog import RunLog
from factor_transfer.selection import Outcome, Selection
from factor_transfer.training_state import is_under_way, latest_training, save_training
from factor_transfer.update import Update

# Losses are brought to the host only so often (seconds): a GPU need not wait for the screen.
_LOOK_EVERY_S = 0.5


class Trainee:
    """A method that is trained; it goes on from its checkpoint if there is one.

    Args:
        fabric: device, precision and processes.
        method: see ``methods.base``. What is not inside a ``Frozen`` is trained.
        product: the part of ``method`` that is wanted in the end, such as the student.
        epochs: of the whole training.
        steps: in each of them.
        optimization: optimiser and schedule.
        validate: figures on the validation split, after each epoch; empty if there is none.
        selection: which epoch is delivered.
        checkpoint: where ``save`` writes.
        log: told of every step and epoch.
        compiled: whether steps are compiled, if that works here.
        skips: steps that may be left out, see ``Update``.
        synced: whether batch norm is of all processes, see ``Update``.

    Attributes:
        at: steps that are done, of all epochs.

    Raises:
        InputError: a damaged checkpoint.
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
        skips: int = 0,
        synced: bool = False,
    ) -> None:
        self.fabric, self.method, self.product = fabric, method, product
        self.epochs, self.steps = epochs, steps
        self.validate, self.selection, self.checkpoint, self.log = validate, selection, checkpoint, log
        self.update = Update(fabric, method, optimization, steps, epochs, skips, synced, compiled)
        self._teachers = [module for module in method.modules() if isinstance(module, Teacher)]
        self.at, self._saved = 0, 0  # steps
        self.seconds = 0.0  # of whole epochs
        self.history = History(self.update.learning_rate)
        self.best: Outcome | None = None
        self.error: Exception | None = None
        if is_under_way(checkpoint):
            self._resume()
            self._saved = self.at
        log.start(epochs, steps, self.at)

    def begin_epoch(self, epoch: int) -> None:
        """Before the steps of epoch 0.., or the rest of them."""
        self.method.begin_epoch(epoch)
        self.update.model.train()
        if self.at % self.steps == 0:
            self.history = History(self.update.learning_rate)
        self._parts: list[Losses] = []
        self._weights: list[float] = []
        self._looked = time.perf_counter()

    def learn(self, batch: Batch, weight: float, seed: int, more: bool) -> None:
        """A part of a step, or all of it.

        Args:
            batch: on the device.
            weight: of its mean loss in the step's.
            seed: of what is drawn at random in it, such as dropout.
            more: whether other parts of the same step follow.

        Raises:
            InputError: there is too little memory for it.
        """
        why = self.update.prepare(batch)
        if why:
            self.log.say(f"{self.log.stage}  is not compiled, which makes it slower, not different: {why}")
        began, borrowed = time.perf_counter(), self._borrowed()
        torch.manual_seed(seed)
        try:
            losses = self.update.learn(batch, weight, more)
        except (MemoryError, RuntimeError) as error:
            if not is_of_memory(error):
                raise
            raise InputError(
                f"out of memory in {self.log.stage}, in a step of {len(batch.labels)} images: accumulate=2 in the "
                f"recipe's [{self.log.stage.split('-')[0]}], or a larger number, divides each step and comes to the "
                f"same; a smaller batch_size does not ({first_line(error)})"
            ) from error
        # Tensors of their own: a compiled step writes its next losses where these are.
        self._parts.append({name: value.detach().clone() for name, value in losses.items()})
        self._weights.append(weight)
        self.history.seconds += time.perf_counter() - began + self._borrowed() - borrowed

    def move(self, images: int, making: float) -> None:
        """Let a step's gradient take effect.

        Args:
            images: of the step.
            making: seconds that it took to make its batch.
        """
        began = time.perf_counter()
        epoch, step = divmod(self.at, self.steps)
        if self.update.move():
            self.history.add(self._parts, self._weights)
        self._parts, self._weights = [], []
        self.at += 1
        looked = began - self._looked > _LOOK_EVERY_S or step + 1 == self.steps
        if looked:
            self._look(lambda: self.history.look(epoch))
        self._looked = time.perf_counter() if looked else self._looked
        self.history.images += images
        self.history.seconds += time.perf_counter() - began + making
        if looked:
            self.log.step(self.at, self.history.means(), self.history.pace)

    def end_epoch(self, epoch: int, waited: float) -> None:
        """After the steps of epoch 0..: validate, choose, write down.

        Args:
            epoch: 0...
            waited: seconds that there were no images.
        """
        self._look(lambda: self.history.settle(epoch, self.fabric.device))
        self.seconds += self.history.seconds
        processes.share_first([value for _, value in trained_buffers(self.method)])
        with eagerly(self.update.compiled):
            validation = self.validate()
        self._check_finite(epoch, validation)
        if self.selection.better(validation, self.best.figures if self.best else None):
            self.best = Outcome(_copy(self.product.state_dict()), epoch + 1, validation, self.seconds)
        figures = self.history.figures(waited)
        if self.update.skipped:
            figures["skipped"] = self.update.skipped
        self.log.epoch(epoch, {**figures, **{f"validation_{key}": value for key, value in validation.items()}})

    def save(self) -> None:
        """Write down all that is needed to go on from here.

        Raises:
            Diverged: a loss or a weight is not finite; what was written before is kept.
        """
        if self.at == self._saved:
            return
        epoch, step = divmod(self.at, self.steps)
        if step:
            self._look(lambda: self.history.settle(epoch, self.fabric.device))
            self._check_finite(epoch)
        self._saved = self.at
        if processes.rank():
            return
        state = {
            "epoch": epoch,
            "step": step,
            "seconds": self.seconds,
            "best": vars(self.best) if self.best else None,
            "running": self.history.state() if step else None,
        }
        save_training(self.checkpoint, {**state, **self.update.state()})

    def _resume(self) -> None:
        saved, note = latest_training(self.checkpoint)
        if note:
            self.log.say(note)
        try:
            self.update.load(saved)
            self.at, self.seconds = saved["epoch"] * self.steps + saved["step"], saved["seconds"]
            self.best = Outcome(**saved["best"]) if saved["best"] else None
            if saved["running"]:
                self.history = History(**saved["running"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"checkpoint {self.checkpoint} is of another training: {first_line(error)}\n"
                "Add --fresh to start the stage anew"
            ) from error

    def outcome(self) -> Outcome:
        """What came out of it.

        Raises:
            Exception: what ended it early.
        """
        if self.error is not None:
            raise self.error
        if self.best is None:
            raise InputError(f"{self.log.stage} has no epoch to train")
        last = None if self.best.epoch == self.epochs else _copy(self.product.state_dict())
        return replace(self.best, seconds=self.seconds, last=last)

    def stop(self) -> None:
        """Take the bar off the screen and the hooks out of the networks."""
        self.log.stop()
        set_eager(self.method)

    def _borrowed(self) -> float:
        """Seconds of a shared teacher that others paid for; this method alone would have to."""
        return sum(teacher.borrowed for teacher in self._teachers)

    def _look(self, look: Callable[[], None]) -> None:
        try:
            look()
        except Diverged as error:
            raise self._not_finite(str(error)) from None

    def _check_finite(self, epoch: int, validation: Mapping[str, float] | None = None) -> None:
        """Refuse weights that the last step broke: no loss has told of it yet."""
        validation = validation or {}
        broken = [name for name, value in trained_state(self.method).items() if not value.isfinite().all()]
        broken += [f"validation {name}" for name, value in validation.items() if not math.isfinite(value)]
        if broken:
            more = ", …" if broken[3:] else ""
            raise self._not_finite(f"not finite at the end of epoch {epoch + 1}: {', '.join(broken[:3])}{more}")

    def _not_finite(self, where: str) -> Diverged:
        kept = f"The last good checkpoint is kept: {self.checkpoint}\n" if is_under_way(self.checkpoint) else ""
        return Diverged(
            f'{where}\n{kept}A lower learning_rate, warmup_epochs or clip_norm often helps; on_nonfinite="skip" leaves '
            "such steps out"
        )


def _copy(state: Mapping[str, Tensor]) -> State:
    return {key: value.detach().cpu().clone() for key, value in state.items()}
