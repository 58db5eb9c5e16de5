"""The figures of the epochs for TensorBoard and as CSV: each epoch once, also after a stop."""

import csv
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from conftest import Run, refused
from factor_transfer.data import Batches
from factor_transfer.errors import Interrupted
from factor_transfer.training.log import RunLog
from factor_transfer.training.loggers import tensorboard_csv
from small_training import metrics, train


def log(folder: Path, *names: str) -> RunLog:
    return RunLog(Console(quiet=True), "student", folder / "metrics.jsonl", names)


def interrupted(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Train with a logger; the training is stopped after two epochs, killed in the third one, and resumed."""
    epochs = Batches.epoch

    def stop(self: Batches, number: int, start: int = 0) -> Any:
        if number == 2:
            raise KeyboardInterrupt
        return epochs(self, number, start)

    with monkeypatch.context() as patched:
        patched.setattr(Batches, "epoch", stop)
        with pytest.raises(Interrupted):
            train(folder, log=log(folder, name))
    killed = log(folder, name)
    killed.start(epochs=4, steps=1, at=2)
    killed.epoch(2, {"loss": 99.0, "validation_top1": 0.0})  # no checkpoint follows
    killed.stop()
    train(folder, log=log(folder, name))


def test_csv_has_each_epoch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(tmp_path, monkeypatch, "csv")
    with (tmp_path / "csv" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = metrics(tmp_path)
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4]
    for row, record in zip(rows, expected, strict=True):
        assert set(row) == set(record) - {"stage", "epoch"} | {"step"}
        assert float(row["loss"]) == record["loss"]
        assert float(row["validation_top1"]) == record["validation_top1"]


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="the extra tensorboard is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TensorBoard
def test_tensorboard_has_each_epoch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    interrupted(tmp_path, monkeypatch, "tensorboard")
    read = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("loss", "validation_top1"):
        events = read.Scalars(name)
        assert [event.step for event in events] == [1, 2, 3, 4]
        assert [event.value for event in events] == pytest.approx([record[name] for record in metrics(tmp_path)])


def test_every_stage_of_a_run_has_its_log(tiny: Path, run: Run) -> None:
    tiny.write_text('log = ["csv"]\n' + tiny.read_text().replace("epochs = 3", "epochs = 1"))
    result = run("run", tiny)
    assert result.code == 0, result.err
    for stage in ("teacher", "paraphraser", "student-factor-seed0"):
        (row,) = csv.DictReader(Path("runs/tiny", stage, "csv", "metrics.csv").read_text().splitlines())
        record = json.loads(Path("runs/tiny", stage, "metrics.jsonl").read_text())
        assert float(row["loss"]) == record["loss"]
    again = run("run", tiny, "log=[]")
    assert again.out.count("up to date") == 3  # the logs are no part of what a stage is made from


def test_what_cannot_be_written_is_told_before_anything_is_trained(
    tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(run("run", tiny, 'log=["wandb"]'), "log", "'tensorboard' or 'csv'", "'wandb'")
    monkeypatch.setattr(tensorboard_csv, "installed", lambda _: False)
    for command in ("teacher", "run", "compare"):
        refused(run(command, tiny, 'log=["csv", "tensorboard"]'), r"pip install 'factor-transfer\[tensorboard\]'")
    assert not Path("runs").exists()
