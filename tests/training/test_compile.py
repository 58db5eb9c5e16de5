import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from factor_transfer import Distillation, FactorTransfer, Paraphraser, Translator
from factor_transfer.data import Batch, Batches, Split
from factor_transfer.distributed.fabric import open_fabric
from factor_transfer.methods import KD, Teacher, trained_state
from factor_transfer.training.log import RunLog
from factor_transfer.training.loop import fit
from factor_transfer.training.networks.compile import compile_networks, worthwhile
from factor_transfer.training.optim import Optimization
from factor_transfer.training.trainer import Selection, Trainer

IMAGES = torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24) % 4


class Small(nn.Module):
    """Soon compiled; with dropout, whose random numbers must be the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stage = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.dropout, self.fc = nn.Dropout(0.2), nn.Linear(width, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.dropout(self.stage(images)).mean((2, 3)))


def method() -> Distillation:
    torch.manual_seed(0)
    term = FactorTransfer(Paraphraser(16), Translator(8, 8), "stage", "stage", beta=20)
    return Distillation(Small(8), Teacher(Small(16), None, IMAGES), {"factor": term, "kd": KD()})


def hooks(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


def train(folder: Path, compiled: bool) -> tuple[Trainer, dict[str, Tensor], str]:
    """Two epochs of two whole batches and a smaller one, for which nothing is compiled."""
    folder.mkdir()
    one, screen = method(), io.StringIO()
    batches = Batches(Split(IMAGES, LABELS), 10, 0)
    trainer = Trainer(
        open_fabric("cpu", "32-true"),
        one,
        one.student.model,
        epochs=2,
        steps=len(batches),
        optimization=Optimization(learning_rate=0.01),
        validate=lambda: {"top1": 100 * (one.student.model(IMAGES).argmax(1) == LABELS).float().mean().item()},
        selection=Selection("top1", highest=True, keep="last"),
        checkpoint=folder / "last.ckpt",
        log=RunLog(Console(file=screen), "student", folder / "metrics.jsonl"),
        compiled=compiled,
    )
    fit([trainer], batches)
    return trainer, trainer.outcome().state, screen.getvalue()


def test_a_compiled_training_is_the_plain_one(tmp_path: Path) -> None:
    _, plain, _ = train(tmp_path / "plain", compiled=False)
    trainer, compiled, said = train(tmp_path / "compiled", compiled=True)
    assert trainer.compiled
    assert "is not compiled" not in said
    for key, value in plain.items():
        assert torch.allclose(compiled[key].float(), value.float(), rtol=1e-3, atol=1e-4), key
    assert hooks(trainer.method) == 0
    assert all(module._compiled_call_impl is None for module in trainer.method.modules())
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("plain", "compiled")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def wrong(module: nn.Module, **options: Any) -> None:
    def call(*args: Any) -> Any:
        seen = module.forward(*args)
        return seen._replace(logits=None if seen.logits is None else 1.5 * seen.logits)

    module._compiled_call_impl = call


def broken(module: nn.Module, **options: Any) -> None:
    raise RuntimeError("no compiler here\nand a long story")


@pytest.mark.parametrize(("compiler", "reason"), [(wrong, "gradient would differ"), (broken, "no compiler")])
def test_a_wrong_compiled_gradient_is_not_used(
    compiler: Any, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(nn.Module, "compile", compiler)
    one = method().train()
    before = copy.deepcopy(trained_state(one))
    why = compile_networks(open_fabric("cpu", "32-true"), one, Batch(IMAGES, LABELS))
    assert why is not None
    assert reason in why
    assert "story" not in why
    assert hooks(one) == 0
    assert all(torch.equal(value, before[key]) for key, value in trained_state(one).items())
    # A whole training goes on, with one line that says so, and ends with what it ends with otherwise.
    _, plain, _ = train(tmp_path / "plain", compiled=False)
    _, other, said = train(tmp_path / "other", compiled=True)
    assert said.count("is not compiled") == 1
    assert all(torch.equal(other[key], value) for key, value in plain.items())


def test_short_trainings_are_not_compiled() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    resnet20 = 41_000_000
    assert not worthwhile(resnet20, 50_000, 391, cpu)
    assert worthwhile(resnet20, 164 * 50_000, 164 * 391, cpu)
    assert worthwhile(1000, 1000, 1000, cuda)
    assert not worthwhile(resnet20, 100_000, 999, cuda)
