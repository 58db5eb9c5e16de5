"""The figures of the epochs in other formats and on servers: each epoch once, also after a stop."""

import csv
import json
import sys
from collections import namedtuple
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from rich.console import Console

from conftest import Run, refused
from factor_transfer.data import Batches
from factor_transfer.errors import Interrupted
from factor_transfer.training.log import RunLog
from factor_transfer.training.loggers import epoch_loggers, servers
from small_training import metrics, train

RECIPE = {"name": "pictures", "student": {"epochs": 4}, "data": {"root": "p" * 600}}


def log(folder: Path, *names: str) -> RunLog:
    return RunLog(Console(quiet=True), "student", folder / "metrics.jsonl", names, RECIPE)


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


class Wandb:
    """A stand-in for the library wandb, with the runs that it was asked for and the steps that were sent."""

    def __init__(self) -> None:
        self.runs: list[dict[str, Any]] = []
        self.sent: list[tuple[int, dict[str, float]]] = []
        self.exit_codes: list[int] = []
        self.down_at: int | None = None

    def init(self, **settings: Any) -> SimpleNamespace:
        self.runs.append(settings)
        return SimpleNamespace(id=settings["id"], log=self.log, finish=self.finish)

    def log(self, figures: dict[str, float], step: int) -> None:
        if step == self.down_at:
            raise ConnectionError("the server is down")
        self.sent.append((step, figures))

    def finish(self, exit_code: int) -> None:
        self.exit_codes.append(exit_code)


class MlflowClient:
    """A stand-in for the client of MLflow, with as much of its memory as the tests ask for."""

    params: ClassVar[dict[str, str]] = {}
    metrics: ClassVar[list[Any]] = []
    experiments: ClassVar[dict[str, SimpleNamespace]] = {}
    info = SimpleNamespace(run_id="a run", run_name="", status="")

    def get_experiment_by_name(self, name: str) -> SimpleNamespace | None:
        return self.experiments.get(name)

    def create_experiment(self, name: str) -> str:
        return str(self.experiments.setdefault(name, SimpleNamespace(experiment_id="1")).experiment_id)

    def create_run(self, experiment_id: str, run_name: str) -> SimpleNamespace:
        assert not self.info.run_name
        self.info.run_name = run_name
        return SimpleNamespace(info=self.info)

    def update_run(self, run_id: str, status: str) -> None:
        assert run_id == "a run"
        self.info.status = status

    set_terminated = update_run

    def log_batch(self, run_id: str, metrics: Sequence[Any] = (), params: Sequence[Any] = ()) -> None:
        self.metrics.extend(metrics)
        self.params.update((param.key, param.value) for param in params)

    def search_runs(self, experiment_ids: list[str]) -> list[SimpleNamespace]:
        return [SimpleNamespace(info=self.info, data=SimpleNamespace(params=self.params))]

    def get_metric_history(self, run_id: str, key: str) -> list[Any]:
        return [metric for metric in self.metrics if metric.key == key]


ENTITIES = SimpleNamespace(
    Param=namedtuple("Param", "key value"), Metric=namedtuple("Metric", "key value timestamp step")
)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment variables of the libraries are as before after the test."""
    for variable, value in {**servers.Wandb.environment, **servers.MLflow.environment}.items():
        monkeypatch.setenv(variable, value)
    for variable in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch, environment: None) -> Wandb:
    server = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", server)
    monkeypatch.setattr(epoch_loggers, "installed", lambda _: True)
    return server


def test_wandb_continues_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wandb: Wandb) -> None:
    interrupted(tmp_path, monkeypatch, "wandb")
    assert len(wandb.runs) == 3
    assert len({run["id"] for run in wandb.runs}) == 1
    assert {(run["project"], run["name"]) for run in wandb.runs} == {("pictures", tmp_path.name)}
    assert wandb.runs[0]["config"] == RECIPE
    assert [step for step, _ in wandb.sent] == [1, 2, 3, 4]
    assert wandb.sent[-1][1]["validation_top1"] == metrics(tmp_path)[-1]["validation_top1"]
    assert wandb.exit_codes == [1, 1, 0]


def test_a_failing_server_ends_no_training_and_gets_the_rest_later(
    tmp_path: Path, tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch, wandb: Wandb
) -> None:
    wandb.down_at = 2
    result = run("teacher", tiny, 'log=["wandb", "csv"]')
    assert result.code == 0, result.err
    assert result.out.count("Warning") == 1
    assert "teacher cannot be logged to wandb; the training continues without it: the server is down" in result.out
    assert len(Path("runs/tiny/teacher/csv/metrics.csv").read_text().splitlines()) == 1 + 3
    assert wandb.runs[0]["config"]["teacher"]["model"] == "resnet8"

    wandb.sent.clear()
    train(tmp_path, log=log(tmp_path, "wandb"))
    wandb.down_at = None
    log(tmp_path, "wandb").start(epochs=4, steps=1, at=4)
    assert [step for step, _ in wandb.sent] == [1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore")  # of MLflow
def test_mlflow_continues_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: None) -> None:
    """With MLflow itself if it is installed, otherwise with a stand-in."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    if find_spec("mlflow") is None:
        monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=MlflowClient))
        monkeypatch.setitem(sys.modules, "mlflow.entities", ENTITIES)
    interrupted(tmp_path, monkeypatch, "mlflow")
    client = import_module("mlflow").MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("pictures").experiment_id])
    assert (found.info.run_name, found.info.status) == (tmp_path.name, "FINISHED")
    assert found.data.params == {"name": "pictures", "student.epochs": "4", "data.root": "p" * 500}
    assert [metric.step for metric in client.get_metric_history(found.info.run_id, "loss")] == [1, 2, 3, 4]


@pytest.mark.skipif(find_spec("wandb") is None, reason="the extra wandb is not installed")
@pytest.mark.filterwarnings("ignore")  # of wandb
def test_wandb_itself_accepts_the_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: None) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    running = log(tmp_path, "wandb")
    running.start(epochs=4, steps=1, at=0)
    running.epoch(0, {"loss": 1.0})
    running.stop()
    record = json.loads((tmp_path / "wandb.json").read_text())
    assert record["epochs"] == 1
    assert [path.parent.name.split("-")[-1] for path in tmp_path.glob("wandb/offline-run-*/*.wandb")] == [record["run"]]
    import_module("wandb").teardown()


def test_unusable_loggers_are_reported_before_training(tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(run("run", tiny, 'log=["wandbe"]'), "log", "'wandb' or 'mlflow'", "'wandbe'")
    monkeypatch.setattr(epoch_loggers, "installed", lambda _: False)
    for command, name in (("teacher", "tensorboard"), ("run", "wandb"), ("compare", "mlflow")):
        refused(run(command, tiny, f'log=["csv", "{name}"]'), rf"pip install 'factor-transfer\[{name}\]'")
    assert not Path("runs").exists()
