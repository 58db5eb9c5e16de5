import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR

from factor_transfer.training.optim import Optimization


def rates(optimization: Optimization, steps_per_epoch: int, epochs: int) -> list[float]:
    """The learning rate of every step."""
    optimizer, scheduler = optimization.build([nn.Parameter(torch.zeros(1))], steps_per_epoch, epochs)
    found = []
    for _ in range(steps_per_epoch * epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine"])
def test_schedules_are_pytorchs_own(schedule: str) -> None:
    steps, epochs = 4, 6
    ours = rates(Optimization(learning_rate=0.5, schedule=schedule, milestones=[2, 5], gamma=0.2), steps, epochs)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs: LRScheduler
    if schedule == "step":
        theirs = MultiStepLR(optimizer, [2 * steps, 5 * steps], gamma=0.2)
    else:
        minimum = 0.5 if schedule == "constant" else 0.0
        theirs = CosineAnnealingLR(optimizer, steps * epochs, eta_min=minimum)
    expected = []
    for _ in range(steps * epochs):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    assert ours == pytest.approx(expected)


def test_warm_up_rises_to_the_learning_rate_and_never_starts_at_zero() -> None:
    found = rates(Optimization(learning_rate=1.0, warmup_epochs=2, schedule="cosine"), 5, 4)
    assert found[0] > 0
    assert found[:10] == sorted(found[:10])
    assert found[10] == 1.0
    assert found[10:] == sorted(found[10:], reverse=True)


def test_defaults_are_the_authors() -> None:
    optimizer, _ = Optimization().build([nn.Parameter(torch.zeros(1))], 1, 1)
    assert isinstance(optimizer, torch.optim.SGD)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (0.1, 0.9, 5e-4, False)
    assert isinstance(Optimization(optimizer="adamw").build([nn.Parameter(torch.zeros(1))], 1, 1)[0], torch.optim.AdamW)
