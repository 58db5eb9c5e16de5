"""Optimisers and learning-rate schedules."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from factor_transfer.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """The settings of the optimiser and its schedule. The defaults are those of the authors' code.

    Attributes:
        optimizer: the optimiser, ``"sgd"`` (with momentum) or ``"adamw"``.
        learning_rate: the highest learning rate of the schedule.
        momentum: the momentum of SGD.
        nesterov: whether SGD uses Nesterov momentum.
        weight_decay: the coefficient of the L2 penalty (SGD) or of the decoupled weight decay (AdamW).
        schedule: the schedule of the learning rate. ``"constant"``; ``"step"``: multiplied by ``gamma`` at each of
            ``milestones``; ``"cosine"``: annealed to zero along half a cosine (Loshchilov, Hutter 2017).
        milestones: the epochs at which ``"step"`` changes the learning rate.
        gamma: the factor of ``"step"``.
        warmup_epochs: the number of epochs, possibly fractional, of linear warm-up from zero before the schedule.
        clip_norm: the largest norm of the gradient of all trained parameters. A longer gradient is scaled down to it
            (Pascanu, Mikolov, Bengio 2013). The gradient is not clipped if left out.

    Raises:
        InputError: if ``nesterov`` is set and ``momentum`` is 0.
    """

    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Annotated[float, Gt(0)] = 0.1
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, Ge(0)] = 5e-4
    schedule: Literal["constant", "step", "cosine"] = "constant"
    milestones: Sequence[Annotated[int, Ge(1)]] = ()
    gamma: Annotated[float, Gt(0)] = 0.1
    warmup_epochs: Annotated[float, Ge(0)] = 0.0
    clip_norm: Annotated[float, Gt(0)] | None = None

    def __post_init__(self) -> None:
        """Refuse a combination of settings that the optimiser does not support."""
        if self.nesterov and not self.momentum:
            raise InputError("nesterov needs a momentum above 0")

    def factor(self, epoch: float, epochs: int) -> float:
        """The factor that the learning rate is multiplied by at a point of the training.

        Args:
            epoch: the epochs done, from 0 to ``epochs``, including the fraction of the running epoch.
            epochs: the number of epochs of the whole training.
        """
        if epoch < self.warmup_epochs:
            return epoch / self.warmup_epochs
        if self.schedule == "step":
            return self.gamma ** sum(epoch >= milestone for milestone in self.milestones)
        if self.schedule == "cosine":
            progress = (epoch - self.warmup_epochs) / max(epochs - self.warmup_epochs, 1e-12)
            return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        return 1.0

    def build(
        self, parameters: Iterable[nn.Parameter], steps_per_epoch: int, epochs: int
    ) -> tuple[torch.optim.Optimizer, LambdaLR]:
        """Build the optimiser of the given parameters and its schedule, which must be advanced after every step."""
        optimizer: torch.optim.Optimizer
        parameters = list(parameters)
        # A fused optimiser updates all parameters in one kernel, but exists only for these devices.
        fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
        if self.optimizer == "sgd":
            optimizer = torch.optim.SGD(
                parameters,
                lr=self.learning_rate,
                momentum=self.momentum,
                nesterov=self.nesterov,
                weight_decay=self.weight_decay,
                fused=fused,
            )
        else:
            optimizer = torch.optim.AdamW(
                parameters, lr=self.learning_rate, weight_decay=self.weight_decay, fused=fused
            )

        def factor(step: int) -> float:
            # During warm-up, the factor is taken half a step later, because it would be 0 in the first step.
            warming_up = step + 0.5 < self.warmup_epochs * steps_per_epoch
            return self.factor((step + 0.5 if warming_up else step) / steps_per_epoch, epochs)

        return optimizer, LambdaLR(optimizer, factor)
