"""The moving average of the weights: its formula, and what is validated, delivered and resumed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from factor_transfer.training import trainer
from factor_transfer.training.checkpoint import save_training
from factor_transfer.training.networks.average import WeightAverage
from small_training import metrics, train


def test_the_average_of_the_formula() -> None:
    torch.manual_seed(0)
    network = nn.BatchNorm1d(3)
    average = WeightAverage(network, decay=0.4)
    expected = {key: value.double().clone() for key, value in network.state_dict().items()}
    for step in range(1, 9):
        network(torch.randn(5, 3))
        network.weight.data += torch.randn(3)
        average.update()
        decay = min(0.4, (1 + step) / (10 + step))
        for key in ("weight", "running_mean", "running_var"):
            expected[key] = decay * expected[key] + (1 - decay) * network.state_dict()[key].double()
    live = {key: value.clone() for key, value in network.state_dict().items()}
    with average.in_use():
        for key in ("weight", "running_mean", "running_var"):
            assert torch.allclose(network.state_dict()[key].double(), expected[key], atol=1e-5), key
        assert network.num_batches_tracked == 8
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in live.items())


def test_the_average_is_validated_and_delivered_and_the_training_stays_the_same(tmp_path: Path) -> None:
    for name in ("plain", "averaged"):
        (tmp_path / name).mkdir()
    plain = train(tmp_path / "plain")
    averaged = train(tmp_path / "averaged", ema_decay=0.9)
    assert any(not torch.equal(plain.state[key], averaged.state[key]) for key in plain.state)
    losses = [[line["loss"] for line in metrics(tmp_path / name)] for name in ("plain", "averaged")]
    assert losses[0] == losses[1]


def test_a_resumed_training_ends_with_the_same_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("through", "killed"):
        (tmp_path / name).mkdir()
    through = train(tmp_path / "through", ema_decay=0.9)

    def save_and_die(path: Path, state: Any) -> None:
        save_training(path, state)
        raise SystemError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_training", save_and_die)
        with pytest.raises(SystemError, match="killed"):
            train(tmp_path / "killed", ema_decay=0.9)
    resumed = train(tmp_path / "killed", ema_decay=0.9, validation=[70.0, 70.0, 60.0])
    for key, value in through.state.items():
        assert resumed.state[key].numpy().tobytes() == value.numpy().tobytes(), key
