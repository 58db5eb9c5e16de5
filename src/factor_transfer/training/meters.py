"""The losses of an epoch, step by step."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from factor_transfer.distributed import collectives
from factor_transfer.errors import Diverged


class Meters:
    """What the steps of one epoch lost; of several processes, in the end, the mean.

    Losses stay on the device until somebody looks, for a GPU need not wait for the host at every step.

    Args:
        rate: the learning rate that the epoch begins with.
        values: losses of the steps that an earlier sitting has taken, by name.
        images: of those steps.
        seconds: that they took.

    Attributes:
        images: of the steps so far.
        seconds: that they took.
    """

    def __init__(
        self,
        rate: float,
        values: Mapping[str, Sequence[float]] | None = None,
        images: int = 0,
        seconds: float = 0.0,
    ) -> None:
        self.rate, self.images, self.seconds = rate, images, seconds
        self.values = {name: list(of_steps) for name, of_steps in (values or {}).items()}  # of all processes
        self._own: dict[str, list[float]] = {}  # of this one, not settled
        self._pending: list[dict[str, Tensor]] = []  # of this one, on the device

    def add(self, parts: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> None:
        """Note a step.

        Args:
            parts: the losses of each part of its batch, 0-d tensors without a graph.
            weights: of the parts, such that the weighted sum is the batch's mean.
        """
        step = {name: value * weights[0] for name, value in parts[0].items()}
        for losses, weight in zip(parts[1:], weights[1:], strict=True):
            for name, value in losses.items():
                step[name] += weight * value
        self._pending.append(step)

    def fetch(self, epoch: int) -> None:
        """Bring to the host what is still on the device.

        Args:
            epoch: 0.., for the message.

        Raises:
            Diverged: a loss that is not finite.
        """
        before = self._steps()
        if self._pending:
            for name in self._pending[0]:
                values = torch.stack([losses[name] for losses in self._pending]).tolist()
                self._own.setdefault(name, []).extend(values)
            self._pending.clear()
        settled = len(self.values.get("loss", ()))
        for step, loss in enumerate(self._own.get("loss", ()), settled):
            if step >= before and not math.isfinite(loss):
                parts = ", ".join(f"{name} {values[step - settled]:.4g}" for name, values in self._own.items())
                raise Diverged(f"the loss is not finite in epoch {epoch + 1}, step {step + 1}: {parts}")

    def reduce(self, epoch: int, device: torch.device) -> None:
        """Put together what all processes have; each must do so after the same step.

        Args:
            epoch: 0.., for a message.
            device: where they talk to each other.

        Raises:
            Diverged: as in ``fetch``.
        """
        self.fetch(epoch)
        if not self._own:
            return
        own = torch.tensor(list(self._own.values()), dtype=torch.float64)
        if collectives.world() > 1:
            own = collectives.all_reduce_sum(own.to(device)).cpu() / collectives.world()
        for name, values in zip(self._own, own.tolist(), strict=True):
            self.values.setdefault(name, []).extend(values)
        self._own = {}

    def means(self) -> dict[str, float]:
        """The mean of each loss over the steps that were looked at."""
        both = {name: [*self.values.get(name, ()), *self._own.get(name, ())] for name in {**self.values, **self._own}}
        return {name: sum(values) / len(values) for name, values in both.items()}

    @property
    def images_per_second(self) -> float:
        """Images per second."""
        return self.images / self.seconds

    def figures(self, waited: float) -> dict[str, float]:
        """What is said of the epoch: means of the losses, learning rate and pace.

        Args:
            waited: seconds that there were no images.
        """
        waiting = 100 * waited / self.seconds
        pace = {"images_per_s": self.images_per_second, "seconds": self.seconds, "waiting": waiting}
        return {**self.means(), "learning_rate": self.rate, **pace}

    def state(self) -> dict[str, Any]:
        """What it is made from again, once it is settled."""
        return {"rate": self.rate, "values": self.values, "images": self.images, "seconds": self.seconds}

    def _steps(self) -> int:
        return sum(len(values.get("loss", ())) for values in (self.values, self._own))
