"""The loggers of a stage, which write the figures of ``metrics.jsonl`` in other formats or send them to a server."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from factor_transfer.errors import InputError, first_line
from factor_transfer.external import installed, pip_install
from factor_transfer.training.loggers.servers import MLflow, Wandb
from factor_transfer.training.loggers.tensorboard_csv import Csv, TensorBoard

LoggerName = Literal["tensorboard", "csv", "wandb", "mlflow"]

# One of the libraries of a logger must be installed. The extra of this package has the name of the logger.
_LIBRARIES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "mlflow": ("mlflow",)}
_FILES: dict[str, type[TensorBoard | Csv]] = {"tensorboard": TensorBoard, "csv": Csv}
_SERVERS: dict[str, type[Wandb | MLflow]] = {"wandb": Wandb, "mlflow": MLflow}


class Logger(Protocol):
    """A logger of the epochs of one stage."""

    def log(self, epoch: int, figures: Mapping[str, float]) -> None:
        """Write the figures of an epoch, counted from 1."""

    def close(self, finished: bool) -> None:
        """Write what is buffered, and end the log.

        Args:
            finished: whether all epochs of the stage are complete.
        """


def check_loggers(names: Iterable[str]) -> None:
    """Check that the libraries of loggers are installed.

    Args:
        names: the loggers, see ``LoggerName``.

    Raises:
        InputError: if a library is missing.
    """
    for name in names:
        libraries = _LIBRARIES.get(name, ())
        if libraries and not any(map(installed, libraries)):
            raise InputError(f'log = ["{name}"] needs {name}, which is not installed; {pip_install(name)}')


class EpochLoggers:
    """The loggers of the epochs of one stage.

    A file that cannot be written ends the training, as one of ``metrics.jsonl`` would. A logger whose server fails is
    not used again before the training is resumed, and the training continues.

    Args:
        names: the loggers.
        folder: the folder of the stage, which the files are written to.
        complete: the records of ``metrics.jsonl`` that are complete if the training is resumed.
        recipe: the settings of the recipe, which servers show beside the figures.
        warn: a function that prints a warning.
    """

    def __init__(
        self,
        names: Sequence[str],
        folder: Path,
        complete: Sequence[Mapping[str, Any]],
        recipe: Mapping[str, Any],
        warn: Callable[[str], None],
    ) -> None:
        self.folder, self._warn = folder, warn
        self._loggers: dict[str, Logger] = {}
        epochs = [_numbers(record) for record in complete]
        for name in dict.fromkeys(names):
            with self._contained(name):
                if name in _FILES:
                    self._loggers[name] = _FILES[name](folder, epochs)
                else:
                    self._loggers[name] = _SERVERS[name](folder, epochs, recipe)

    def epoch(self, epoch: int, figures: Mapping[str, Any]) -> None:
        """Write the figures of an epoch, counted from 0, with ``epoch + 1`` as the step."""
        for name, logger in list(self._loggers.items()):
            with self._contained(name):
                logger.log(epoch + 1, _numbers(figures))

    def close(self, finished: bool) -> None:
        """Close the loggers.

        Args:
            finished: whether all epochs of the stage are complete.
        """
        for name, logger in list(self._loggers.items()):
            with self._contained(name):
                logger.close(finished)
        self._loggers.clear()

    @contextmanager
    def _contained(self, name: str) -> Iterator[None]:
        """A context that turns the errors of a logger into ``InputError``, or for a server into a warning."""
        try:
            yield
        except Exception as error:  # the library of a server may raise anything
            if name in _SERVERS:
                self._loggers.pop(name, None)
                self._warn(
                    f"Warning: {self.folder.name} cannot be logged to {name}; the training continues without it: "
                    f"{first_line(error)}"
                )
            elif isinstance(error, OSError):
                reason = error.strerror or first_line(error)
                raise InputError(f"cannot write the logs in {self.folder}: {reason}") from error
            else:
                raise


def _numbers(figures: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: value
        for name, value in figures.items()
        if isinstance(value, int | float) and name not in ("epoch", "step")
    }
