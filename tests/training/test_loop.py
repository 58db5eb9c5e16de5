import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from factor_transfer import Supervised
from factor_transfer.data import Batches
from factor_transfer.distributed.fabric import open_fabric
from factor_transfer.errors import InputError, Interrupted
from factor_transfer.training import trainer
from factor_transfer.training.checkpoint import read_training, save_training
from factor_transfer.training.log import RunLog
from factor_transfer.training.trainer import Selection
from small_training import metrics, train


def test_training_learns_and_is_recorded(tmp_path: Path) -> None:
    outcome = train(tmp_path, epochs=12, validation=[10.0] * 12)
    lines = metrics(tmp_path)
    assert [line["epoch"] for line in lines] == list(range(1, 13))
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    assert lines[-1]["accuracy"] > lines[0]["accuracy"]
    assert {"stage", "learning_rate", "images_per_s", "seconds", "validation_top1"} <= set(lines[0])
    assert (outcome.epoch, outcome.figures) == (12, {"top1": 10.0})


@pytest.mark.parametrize("killed_after", [1, 2, 3])
def test_a_resumed_training_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_after: int
) -> None:
    (tmp_path / "through").mkdir()
    (tmp_path / "killed").mkdir()
    through = train(tmp_path / "through")
    save = save_training

    def save_and_die(path: Path, state: Any) -> None:
        save(path, state)
        if state["epoch"] == killed_after:
            raise SystemError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_training", save_and_die)
        with pytest.raises(SystemError, match="killed"):
            train(tmp_path / "killed")
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:  # a kill between the line and the checkpoint
        file.write(json.dumps({"epoch": killed_after + 1, "loss": -1.0}) + "\n")
    resumed = train(tmp_path / "killed", validation=[50.0, 70.0, 70.0, 60.0][killed_after:])
    assert set(resumed.state) == set(through.state)
    for key, value in through.state.items():
        assert resumed.state[key].numpy().tobytes() == value.numpy().tobytes(), key
    assert [line["loss"] for line in metrics(tmp_path / "killed")] == [
        line["loss"] for line in metrics(tmp_path / "through")
    ]


@pytest.mark.parametrize(("keep", "epoch", "top1"), [("best", 3, 70.0), ("last", 4, 60.0)])
def test_the_best_epoch_is_delivered_the_latest_of_equals(tmp_path: Path, keep: Any, epoch: int, top1: float) -> None:
    outcome = train(tmp_path, selection=Selection("top1", highest=True, keep=keep))
    assert (outcome.epoch, outcome.figures["top1"]) == (epoch, top1)
    shorter = tmp_path / "shorter"
    shorter.mkdir()
    # The schedule is of four epochs in both: the weights are those of that epoch, not of the last.
    full = read_training(tmp_path / "last.ckpt")
    assert full["best"]["epoch"] == epoch
    same = all(torch.equal(full["method"][f"model.model.{key}"], value) for key, value in outcome.state.items())
    assert same == (epoch == 4)


def test_the_lowest_can_be_the_best(tmp_path: Path) -> None:
    selection = Selection("loss", highest=False, keep="best")
    losses = iter([3.0, 1.0, 2.0, 4.0])
    assert train(tmp_path, selection=selection, validate=lambda: {"loss": next(losses)}).epoch == 2


def test_without_validation_the_last_epoch_is_delivered(tmp_path: Path) -> None:
    outcome = train(tmp_path, selection=Selection("top1", highest=True, keep="best"), validate=dict)
    assert (outcome.epoch, outcome.figures) == (4, {})


def test_a_loss_that_is_not_finite_stops_after_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Supervised.forward
    steps = 0

    def broken(self: Supervised, *batch: torch.Tensor) -> dict[str, torch.Tensor]:
        nonlocal steps
        steps += 1
        losses = forward(self, *batch)
        # Three steps an epoch: the eighth is step 2 of epoch 3.
        return {**losses, "loss": losses["loss"] * (float("inf") if steps == 8 else 1.0)}

    monkeypatch.setattr(Supervised, "forward", broken)
    with pytest.raises(InputError, match=r"not finite in epoch 3, step 2: loss inf, accuracy .*\n.*kept: .*last\.ckpt"):
        train(tmp_path)
    kept = read_training(tmp_path / "last.ckpt")
    assert kept["epoch"] == 2
    assert all(value.isfinite().all() for value in kept["method"].values())


@pytest.mark.parametrize(
    ("epoch", "message"), [(2, "2 of 4 epochs, which are saved in .*last.ckpt"), (0, "nothing was saved")]
)
def test_ctrl_c_reports_the_saved_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int, message: str
) -> None:
    batches = Batches.epoch

    def interrupted(self: Batches, number: int, start: int = 0) -> Iterator[Any]:
        if number == epoch:
            raise KeyboardInterrupt
        return batches(self, number, start)

    monkeypatch.setattr(Batches, "epoch", interrupted)
    with pytest.raises(Interrupted, match=message):
        train(tmp_path)
    assert (tmp_path / "last.ckpt").exists() == bool(epoch)


def test_bfloat16_is_optional(tmp_path: Path) -> None:
    outcome = train(tmp_path, epochs=12, validation=[10.0] * 12, fabric=open_fabric("cpu", "bf16-mixed"))
    assert all(value.dtype in (torch.float32, torch.int64) for value in outcome.state.values())
    lines = metrics(tmp_path)
    assert lines[-1]["loss"] < 0.6 * lines[0]["loss"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu(tmp_path: Path) -> None:
    fabric = open_fabric("cuda", "bf16-mixed")
    outcome = train(tmp_path, epochs=12, validation=[10.0] * 12, fabric=fabric)
    assert all(value.device.type == "cpu" for value in outcome.state.values())
    lines = metrics(tmp_path)
    assert lines[-1]["loss"] < 0.6 * lines[0]["loss"]


def test_a_live_bar_on_a_terminal(tmp_path: Path) -> None:
    screen = io.StringIO()
    console = Console(force_terminal=True, width=80, file=screen)
    train(tmp_path, log=RunLog(console, "student", tmp_path / "metrics.jsonl"))
    shown = screen.getvalue()
    for words in ("student", "12/12", "epoch 4", "loss", "accuracy", "images/s", "0:00:0"):
        assert words in shown
