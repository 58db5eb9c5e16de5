"""Meters that collect the losses of an epoch, step by step."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from factor_transfer.distributed import collectives
from factor_transfer.errors import Diverged


class Meters:
    """The losses of the steps of one epoch, averaged over processes by ``reduce``.

    Losses stay on the device until ``fetch``, so that a GPU need not wait for the host at every step.

    Args:
        rate: the learning rate at the beginning of the epoch.
        values: the losses by name of the steps before the training was interrupted, if it was.
        images: the number of images of those steps.
        seconds: the duration of those steps.

    Attributes:
        images: the number of images of the steps so far.
        seconds: the duration of the steps so far.
    """

    def __init__(
        self,
        rate: float,
        values: Mapping[str, Sequence[float]] | None = None,
        images: int = 0,
        seconds: float = 0.0,
    ) -> None:
        self.rate, self.images, self.seconds = rate, images, seconds
        self.values = {name: list(per_step) for name, per_step in (values or {}).items()}  # means over all processes
        self._local: dict[str, list[float]] = {}  # of this process, fetched but not reduced
        self._pending: list[dict[str, Tensor]] = []  # of this process, not fetched from the device

    def add(self, parts: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> None:
        """Add the losses of a step.

        Args:
            parts: the losses of each part of the step's batch, 0-d tensors without a graph.
            weights: the weights of the parts, whose weighted sum is the mean over the batch.
        """
        step = {name: value * weights[0] for name, value in parts[0].items()}
        for losses, weight in zip(parts[1:], weights[1:], strict=True):
            for name, value in losses.items():
                step[name] += weight * value
        self._pending.append(step)

    def fetch(self, epoch: int) -> None:
        """Move losses that are still on the device to the host.

        Args:
            epoch: the epoch, counted from 0, for the message of an error.

        Raises:
            Diverged: if a loss is not finite.
        """
        before = self._steps()
        if self._pending:
            for name in self._pending[0]:
                values = torch.stack([losses[name] for losses in self._pending]).tolist()
                self._local.setdefault(name, []).extend(values)
            self._pending.clear()
        reduced = len(self.values.get("loss", ()))
        for step, loss in enumerate(self._local.get("loss", ()), reduced):
            if step >= before and not math.isfinite(loss):
                parts = ", ".join(f"{name} {values[step - reduced]:.4g}" for name, values in self._local.items())
                raise Diverged(f"the loss is not finite in epoch {epoch + 1}, step {step + 1}: {parts}")

    def reduce(self, epoch: int, device: torch.device) -> None:
        """Average the losses over all processes, each of which must call this after the same step.

        Args:
            epoch: the epoch, counted from 0, for the message of an error.
            device: the device on which the processes communicate.

        Raises:
            Diverged: if a loss is not finite.
        """
        self.fetch(epoch)
        if not self._local:
            return
        means = torch.tensor(list(self._local.values()), dtype=torch.float64)
        if collectives.world() > 1:
            means = collectives.all_reduce_sum(means.to(device)).cpu() / collectives.world()
        for name, values in zip(self._local, means.tolist(), strict=True):
            self.values.setdefault(name, []).extend(values)
        self._local = {}

    def means(self) -> dict[str, float]:
        """The mean of each loss over the steps that have been fetched."""
        names = {**self.values, **self._local}
        fetched = {name: [*self.values.get(name, ()), *self._local.get(name, ())] for name in names}
        return {name: sum(values) / len(values) for name, values in fetched.items()}

    @property
    def images_per_second(self) -> float:
        """The number of images per second."""
        return self.images / self.seconds

    def figures(self, waited: float) -> dict[str, float]:
        """The figures of the epoch: means of the losses, learning rate and speed.

        Args:
            waited: the seconds for which the training waited for images.
        """
        waiting = 100 * waited / self.seconds
        speed = {"images_per_s": self.images_per_second, "seconds": self.seconds, "waiting": waiting}
        return {**self.means(), "learning_rate": self.rate, **speed}

    def state(self) -> dict[str, Any]:
        """The arguments to construct the meters again. ``reduce`` must have been called before."""
        return {"rate": self.rate, "values": self.values, "images": self.images, "seconds": self.seconds}

    def _steps(self) -> int:
        return sum(len(values.get("loss", ())) for values in (self.values, self._local))
