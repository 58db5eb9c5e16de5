"""One method in training: its optimiser and schedule, its best epoch, its checkpoint and its log."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from factor_transfer.checkpoint import State, read_training, save_training
from factor_transfer.compiling import compile_networks, eagerly, set_eager
from factor_transfer.data import Batch
from factor_transfer.errors import InputError
from factor_transfer.methods import Losses, Method, Teacher, load_trained_state, trained_state
from factor_transfer.optimization import Optimization
from factor_transfer.runlog import RunLog
from factor_transfer.selection import Outcome, Selection

# Losses are brought to the host only so often (seconds): a GPU need not wait for the screen.
_LOOK_EVERY_S = 0.5


class Trainee:
    """A method that is trained; it goes on from its checkpoint if there is one.

    Args:
        fabric: device and precision.
        method: see ``methods.base``. What is not inside a ``Frozen`` is trained.
        product: the part of ``method`` that is wanted in the end, such as the student.
        epochs: of the whole training.
        steps: in each of them.
        optimization: optimiser and schedule.
        validate: figures on the validation split, after each epoch; empty if there is none.
        selection: which epoch is delivered.
        checkpoint: written after every epoch.
        log: told of every step and epoch.
        compiled: whether steps are compiled, if that works here.

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
    ) -> None:
        self.fabric, self.method, self.product = fabric, method, product
        self.epochs, self.steps = epochs, steps
        self.validate, self.selection, self.checkpoint, self.log = validate, selection, checkpoint, log
        self.compiled, self._untried = compiled, compiled
        parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
        bare_optimizer, self.scheduler = optimization.build(parameters, steps, epochs)
        self.model, self.optimizer = fabric.setup(method, bare_optimizer)
        self._teachers = [module for module in method.modules() if isinstance(module, Teacher)]
        self.done, self.seconds = 0, 0.0  # epochs, and what they took
        self.best: Outcome | None = None
        self.error: Exception | None = None
        if checkpoint.exists():
            self._resume()
        log.start(epochs, steps, self.done)

    def _resume(self) -> None:
        saved = read_training(self.checkpoint)
        try:
            load_trained_state(self.method, saved["method"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.scheduler.load_state_dict(saved["scheduler"])
            self.done, self.seconds, self.best = saved["epoch"], saved["seconds"], Outcome(**saved["best"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"checkpoint {self.checkpoint} is damaged, or of another training: {str(error).splitlines()[0]}\n"
                "Add --fresh to start the stage anew"
            ) from error

    def begin_epoch(self, epoch: int) -> None:
        """Before the steps of epoch 0..."""
        self.method.begin_epoch(epoch)
        self.model.train()
        self._history: dict[str, list[float]] = {}
        self._pending: list[Losses] = []  # on the device, not yet looked at
        self._rate = self.scheduler.get_last_lr()[0]
        self._seen, self._busy, self._looked = 0, 0.0, time.perf_counter()

    def step(self, epoch: int, step: int, batch: Batch, seed: int, making: float) -> None:
        """One step.

        Args:
            epoch: 0...
            step: of the epoch, 0...
            batch: on the device.
            seed: of what is drawn at random in it, such as dropout.
            making: seconds that it took to make the batch.
        """
        if self._untried:
            self._compile(batch)
        began, borrowed = time.perf_counter(), self._borrowed()
        torch.manual_seed(seed)
        whole = len(batch.labels) == self._batch if self.compiled else True
        with eagerly(not whole):
            losses: Losses = self.model(*batch)
        self.fabric.backward(losses["loss"])
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()

        # A compiled step writes its next losses where these are.
        self._pending.append({name: value.detach().clone() for name, value in losses.items()})
        self._seen += len(batch.labels)
        now = time.perf_counter()
        if now - self._looked > _LOOK_EVERY_S or step + 1 == self.steps:
            self._look(epoch)
            self._looked = now = time.perf_counter()
            means = {name: sum(values) / len(values) for name, values in self._history.items()}
            self.log.step(epoch, step, means, self._seen / (self._busy + now - began + making))
        self._busy += now - began + making + self._borrowed() - borrowed

    def end_epoch(self, epoch: int, waited: float) -> None:
        """After the steps of epoch 0..: validate, choose, write down.

        Args:
            epoch: 0...
            waited: seconds that there were no images.
        """
        self.seconds += self._busy
        with eagerly(self.compiled):
            validation = self.validate()
        self._check_finite(validation, epoch)
        if self.selection.better(validation, self.best.figures if self.best else None):
            self.best = Outcome(_copy(self.product.state_dict()), epoch + 1, validation, self.seconds)
        figures = {
            **{name: sum(values) / len(values) for name, values in self._history.items()},
            "learning_rate": self._rate,
            "images_per_s": self._seen / self._busy,
            "seconds": self._busy,
            "waiting": 100 * waited / self._busy,
        }
        self.log.epoch(epoch, {**figures, **{f"validation_{key}": value for key, value in validation.items()}})
        assert self.best is not None
        self.done = epoch + 1
        save_training(
            self.checkpoint,
            {
                "epoch": self.done,
                "seconds": self.seconds,
                "method": trained_state(self.method),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "best": vars(self.best),
            },
        )

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

    def _compile(self, batch: Batch) -> None:
        self._untried, self._batch = False, len(batch.labels)
        why = compile_networks(self.fabric, self.method, batch)
        if why is not None:
            self.compiled = False
            self.log.say(f"{self.log.stage}  is not compiled, which makes it slower, not different: {why}")

    def _borrowed(self) -> float:
        """Seconds of a shared teacher that others paid for; this method alone would have to."""
        return sum(teacher.borrowed for teacher in self._teachers)

    def _look(self, epoch: int) -> None:
        """Move pending losses into the history; refuse one that is not finite."""
        for name in self._pending[0]:
            values = torch.stack([losses[name] for losses in self._pending]).tolist()
            self._history.setdefault(name, []).extend(values)
        self._pending.clear()
        for step, loss in enumerate(self._history["loss"]):
            if not math.isfinite(loss):
                parts = ", ".join(f"{name} {values[step]:.4g}" for name, values in self._history.items())
                raise self._not_finite(f"the loss is not finite in epoch {epoch + 1}, step {step + 1}: {parts}")

    def _check_finite(self, validation: Mapping[str, float], epoch: int) -> None:
        """Refuse an epoch whose last step broke the weights: no loss has told of it yet."""
        broken = [name for name, value in trained_state(self.method).items() if not value.isfinite().all()]
        broken += [f"validation {name}" for name, value in validation.items() if not math.isfinite(value)]
        if broken:
            more = ", …" if broken[3:] else ""
            raise self._not_finite(f"not finite at the end of epoch {epoch + 1}: {', '.join(broken[:3])}{more}")

    def _not_finite(self, where: str) -> InputError:
        kept = f"The last good checkpoint is kept: {self.checkpoint}\n" if self.checkpoint.exists() else ""
        return InputError(f"{where}\n{kept}A lower learning_rate, or warmup_epochs, often helps")


def _copy(state: Mapping[str, Tensor]) -> State:
    return {key: value.detach().cpu().clone() for key, value in state.items()}
