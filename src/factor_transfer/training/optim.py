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
    """How weights are moved. The defaults are the authors' code's.

    Attributes:
        optimizer: ``"sgd"`` (with momentum) or ``"adamw"``.
        learning_rate: at its highest.
        momentum: of SGD.
        nesterov: Nesterov's momentum, for SGD.
        weight_decay: L2 penalty (SGD) or decoupled decay (AdamW).
        schedule: ``"constant"``; ``"step"``: multiplied by ``gamma`` at each of ``milestones``; ``"cosine"``: to
            zero along half a cosine (Loshchilov, Hutter 2017).
        milestones: epochs.
        gamma: factor of ``"step"``.
        warmup_epochs: of linear warm-up from zero, before any schedule. May be a fraction.
        clip_norm: the gradient of all that is trained is scaled down to this length, if it is longer (Pascanu, Mikolov,
            Bengio 2013). Not at all, if left out.
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
        """Refuse what the optimiser would."""
        if self.nesterov and not self.momentum:
            raise InputError("nesterov needs a momentum above 0")

    def factor(self, epoch: float, epochs: int) -> float:
        """What the learning rate is multiplied by at a point of the training.

        Args:
            epoch: 0..epochs, with the fraction of the running epoch.
            epochs: of the whole training.
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
        """An optimiser and its schedule, which is to be advanced after every step."""
        optimizer: torch.optim.Optimizer
        parameters = list(parameters)
        # One kernel for all parameters, where there is one for their device.
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
            # Half a step on, so that a warm-up does not begin with a step of no length.
            warming = step + 0.5 < self.warmup_epochs * steps_per_epoch
            return self.factor((step + 0.5 if warming else step) / steps_per_epoch, epochs)

        return optimizer, LambdaLR(optimizer, factor)
