"""What a step does to the weights: its gradient, from one part of its batch or several, and the optimiser's move."""

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from factor_transfer import processes
from factor_transfer.batch_norm import synchronise
from factor_transfer.compiling import compile_networks, eagerly, set_eager
from factor_transfer.data import Batch
from factor_transfer.errors import Diverged
from factor_transfer.methods import Losses, Method, load_trained_state, trained_state
from factor_transfer.methods.base import trained_buffers
from factor_transfer.optimization import Optimization


class Update:
    """The gradient of a method's loss, and what is done with it.

    Args:
        fabric: device, precision and processes.
        method: what is trained; not what is inside a ``Frozen``.
        optimization: optimiser, schedule, clipping.
        steps: an epoch.
        epochs: of the whole training.
        skips: how many steps of a gradient that is not finite may be left out; with 0, such a step is taken.
        synced: whether batch norm takes the statistics of all processes' images, not of each one's own.
        compiled: whether the networks are compiled, if that works here.

    Attributes:
        compiled: whether they are, or will be.
        skipped: steps that were left out so far.
    """

    def __init__(
        self,
        fabric: Fabric,
        method: Method,
        optimization: Optimization,
        steps: int,
        epochs: int,
        skips: int = 0,
        synced: bool = False,
        compiled: bool = False,
    ) -> None:
        self.compiled, self._untried = compiled, compiled
        self.fabric, self.method, self.skips, self.skipped = fabric, method, skips, 0
        self.clip_norm = optimization.clip_norm
        if synced and processes.world() > 1:
            synchronise(method)
        self._parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
        bare, self.scheduler = optimization.build(self._parameters, steps, epochs)
        self.model, self.optimizer = fabric.setup(method, bare)
        self._before: list[tuple[str, Tensor]] = []

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return float(self.scheduler.get_last_lr()[0])

    def prepare(self, batch: Batch) -> str | None:
        """Before the first step: compile, if that is wanted.

        Args:
            batch: of the size that all but the last have.

        Returns:
            Why it cannot be, if so.
        """
        if not self._untried:
            return None
        self._untried, self._size = False, len(batch.labels)
        why = compile_networks(self.fabric, self.method, batch)
        failed = processes.largest([why is not None], self.fabric.device)[0]
        if failed and why is None:
            set_eager(self.method)
            why = "another process could not"
        self.compiled = why is None
        return why

    def learn(self, batch: Batch, weight: float, more: bool) -> Losses:
        """Add the gradient of a part of a step's batch.

        Args:
            batch: on the device.
            weight: of its mean loss in the step's.
            more: whether other parts follow; the processes wait for each other at the last one.
        """
        if self.skips and not self._before:
            self._before = [(name, value.clone()) for name, value in trained_buffers(self.method)]
        alone = processes.world() == 1 or not more
        other = self.compiled and len(batch.labels) != self._size
        with nullcontext() if alone else self.fabric.no_backward_sync(self.model):
            with eagerly(other):
                losses: Losses = self.model(*batch)
            self.fabric.backward(losses["loss"] if weight == 1 else losses["loss"] * weight)
        return losses

    def move(self) -> bool:
        """Move the weights by the gradient, and the schedule on.

        Returns:
            Whether the weights were moved, or the step was left out since its gradient is not finite.

        Raises:
            Diverged: more steps were left out than may be.
        """
        moved = not self.skips or self._finite()
        if moved:
            if self.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(self._parameters, self.clip_norm)
            self.optimizer.step()
        else:
            self._leave_out()
        self._before = []
        self.optimizer.zero_grad()
        with warnings.catch_warnings():
            if not moved:  # PyTorch wonders at a schedule that moves before the weights do
                warnings.simplefilter("ignore", UserWarning)
            self.scheduler.step()
        return moved

    def _finite(self) -> bool:
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        return bool(torch.nn.utils.get_total_norm(gradients).isfinite())

    def _leave_out(self) -> None:
        # The forward pass has put what is not finite into the statistics of batch norm.
        now = dict(trained_buffers(self.method))
        for name, value in self._before:
            now[name].copy_(value)
        self.skipped += 1
        if self.skipped > self.skips:
            raise Diverged(
                f"{self.skipped} steps had a gradient that is not finite, max_skipped allows {self.skips}; a lower "
                "learning_rate, warmup_epochs or clip_norm often helps"
            )

    def state(self) -> dict[str, Any]:
        """What a training needs of it to go on."""
        return {
            "method": trained_state(self.method),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "skipped": self.skipped,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state`` gave; what else is in it is not looked at.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: it is of another training.
        """
        load_trained_state(self.method, state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.skipped = state["skipped"]
