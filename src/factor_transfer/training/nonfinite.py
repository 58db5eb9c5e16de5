"""Guards against gradients and weights that are not finite."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from factor_transfer.errors import Diverged
from factor_transfer.methods import Method, trained_state
from factor_transfer.methods.base import trained_buffers

_ADVICE = "a lower learning_rate, warmup_epochs or clip_norm often helps"


class GradientGuard:
    """A guard that skips training steps whose gradient is not finite and undoes their effect on buffers.

    Args:
        method: the method that is trained.
        max_skipped: the number of steps that may be skipped. With 0, the guard does nothing.

    Attributes:
        skipped: the number of steps skipped so far.
    """

    def __init__(self, method: Method, max_skipped: int) -> None:
        self.method, self.max_skipped, self.skipped = method, max_skipped, 0
        self._parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
        self._buffers: list[tuple[str, Tensor]] = []

    def save_buffers(self) -> None:
        """Copy the buffers, such as batch-norm statistics, before the first forward pass of a step."""
        if self.max_skipped and not self._buffers:
            self._buffers = [(name, value.clone()) for name, value in trained_buffers(self.method)]

    def accept(self) -> bool:
        """Whether the step may be taken. If not, the buffers saved before its forward pass are restored.

        Raises:
            Diverged: if more steps have been skipped than are allowed.
        """
        saved, self._buffers = self._buffers, []
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        if not self.max_skipped or torch.nn.utils.get_total_norm(gradients).isfinite():
            return True
        buffers = dict(trained_buffers(self.method))
        for name, value in saved:
            buffers[name].copy_(value)
        self.skipped += 1
        if self.skipped > self.max_skipped:
            raise Diverged(
                f"{self.skipped} steps had a gradient that is not finite, but max_skipped allows only "
                f"{self.max_skipped}; {_ADVICE}"
            )
        return False


def nonfinite_names(method: nn.Module, figures: Mapping[str, float]) -> list[str]:
    """The names of trained weights and of validation figures that are not finite."""
    weights = [name for name, value in trained_state(method).items() if not value.isfinite().all()]
    return weights + [f"validation {name}" for name, value in figures.items() if not torch.tensor(value).isfinite()]


def diverged(where: str, checkpoint: str | None) -> Diverged:
    """The error for a training whose losses or weights are no longer finite.

    Args:
        where: a clause that names the values that are not finite and the epoch.
        checkpoint: the path of the last good checkpoint, if there is one.
    """
    note = f"The last good checkpoint is kept: {checkpoint}\n" if checkpoint else ""
    return Diverged(f'{where}\n{note}{_ADVICE.capitalize()}; on_nonfinite="skip" skips such steps')
