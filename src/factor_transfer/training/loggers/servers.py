"""Weights & Biases and MLflow, which the figures are sent to by their own client libraries.

Lightning's loggers for them allow only one run at a time in a process, but several students may be trained side by
side.
"""

import os
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from factor_transfer.files import read_json, write_json

_PARAMS_PER_REQUEST = 100  # the largest number that MLflow accepts
_PARAM_LENGTH = 500  # the longest value of a parameter that all versions of MLflow accept


class ServerRun(ABC):
    """The run of one stage on a server.

    Its id and the number of epochs sent are in the folder of the stage. A training that is resumed continues the run,
    and sends each epoch once: it skips the epochs that were sent before a kill and are trained again, and catches up on
    those that could not be sent.

    Args:
        folder: the folder of the stage, whose name is the name of the run.
        complete: the figures of the epochs that are complete if the training is resumed.
        recipe: the settings of the recipe, nested like its tables.

    Attributes:
        file: the name of the file in the folder of the stage.
        environment: the environment variables for the client library, which apply unless the user has set them. They
            limit the time that it waits for a server.
    """

    file: ClassVar[str]
    environment: ClassVar[Mapping[str, str]]

    def __init__(self, folder: Path, complete: Sequence[Mapping[str, float]], recipe: Mapping[str, Any]) -> None:
        for variable, value in self.environment.items():
            os.environ.setdefault(variable, value)
        self._path, self._sent = folder / self.file, 0
        run_id = None
        if self._path.exists():
            record = read_json(self._path)
            run_id, self._sent = str(record["run"]), int(record["epochs"])
        self.run_id = self.open(run_id, folder, recipe)
        self._save()
        for epoch, figures in enumerate(complete, 1):
            self.log(epoch, figures)

    def log(self, epoch: int, figures: Mapping[str, float]) -> None:
        """Send the figures of an epoch, counted from 1, unless they were sent before."""
        if epoch > self._sent:
            self.send(epoch, figures)
            self._sent = epoch
            self._save()

    def _save(self) -> None:
        write_json(self._path, {"run": self.run_id, "epochs": self._sent})

    @abstractmethod
    def open(self, run_id: str | None, folder: Path, recipe: Mapping[str, Any]) -> str:
        """Create a run, or continue the one with an id.

        Returns:
            The id of the run.
        """

    @abstractmethod
    def send(self, epoch: int, figures: Mapping[str, float]) -> None:
        """Send the figures of an epoch, counted from 1."""

    @abstractmethod
    def close(self, finished: bool) -> None:
        """Send what is buffered, and end the run.

        Args:
            finished: whether all epochs of the stage are complete.
        """


class Wandb(ServerRun):
    """The logger for Weights & Biases, whose own files are in the folder ``wandb`` of the stage."""

    file = "wandb.json"
    environment: ClassVar[Mapping[str, str]] = {
        "WANDB_CONSOLE": "off",  # the progress bars are not captured
        "WANDB_QUIET": "true",
        "WANDB_INIT_TIMEOUT": "30",
        "WANDB_FINISH_TIMEOUT": "60",
    }

    def open(self, run_id: str | None, folder: Path, recipe: Mapping[str, Any]) -> str:
        """Create a run in the project ``WANDB_PROJECT``, or else in one named as the recipe, or continue a run."""
        self._run: Any = import_module("wandb").init(
            project=os.environ.get("WANDB_PROJECT") or recipe["name"],
            name=folder.name,
            id=run_id or secrets.token_hex(4),
            resume="allow",
            reinit="create_new",
            dir=folder,
            config=dict(recipe),
        )
        return str(self._run.id)

    def send(self, epoch: int, figures: Mapping[str, float]) -> None:
        """Send the figures of an epoch, counted from 1."""
        self._run.log(dict(figures), step=epoch)

    def close(self, finished: bool) -> None:
        """Wait until the figures are sent, for a limited time, and end the run."""
        self._run.finish(exit_code=0 if finished else 1)


class MLflow(ServerRun):
    """The logger for MLflow. The environment variable MLFLOW_TRACKING_URI names the server or the database."""

    file = "mlflow.json"
    environment: ClassVar[Mapping[str, str]] = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # the default of 7 takes four minutes
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    }

    def open(self, run_id: str | None, folder: Path, recipe: Mapping[str, Any]) -> str:
        """Create a run in MLFLOW_EXPERIMENT_NAME, or else in an experiment named as the recipe, or continue a run."""
        self._client: Any = import_module("mlflow").MlflowClient()
        self._entities: Any = import_module("mlflow.entities")
        if run_id is not None:
            self._client.update_run(run_id, status="RUNNING")
            return run_id
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or recipe["name"])
        run_id = str(self._client.create_run(experiment, run_name=folder.name).info.run_id)
        params = [self._entities.Param(key, str(value)[:_PARAM_LENGTH]) for key, value in _flat(recipe)]
        for start in range(0, len(params), _PARAMS_PER_REQUEST):
            self._client.log_batch(run_id, params=params[start : start + _PARAMS_PER_REQUEST])
        return run_id

    def send(self, epoch: int, figures: Mapping[str, float]) -> None:
        """Send the figures of an epoch, counted from 1."""
        now = round(1000 * time.time())
        metrics = [self._entities.Metric(name, value, now, epoch) for name, value in figures.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def close(self, finished: bool) -> None:
        """End the run."""
        self._client.set_terminated(self.run_id, status="FINISHED" if finished else "KILLED")

    def _experiment(self, name: str) -> str:
        """The id of an experiment, which is created if it does not exist."""
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name))
            except Exception:
                found = self._client.get_experiment_by_name(name)  # another process may have created it meanwhile
                if found is None:
                    raise
        return str(found.experiment_id)


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a recipe with their dotted paths."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
