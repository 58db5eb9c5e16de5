"""TensorBoard and CSV, written by the loggers of Lightning Fabric."""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from factor_transfer.errors import InputError, first_line
from factor_transfer.models.optional import installed, pip_install

if TYPE_CHECKING:
    from lightning_fabric.loggers.logger import Logger

LoggerName = Literal["tensorboard", "csv"]


def check_loggers(names: Iterable[str]) -> None:
    """Check that the libraries of loggers are installed.

    Args:
        names: the loggers, see ``LoggerName``.

    Raises:
        InputError: if a library is missing.
    """
    if "tensorboard" in names and not (installed("tensorboard") or installed("tensorboardX")):
        raise InputError(
            f'log = ["tensorboard"] needs tensorboard, which is not installed; {pip_install("tensorboard")}'
        )


class EpochLoggers:
    """Loggers of the epochs of one stage, each in a folder of its own: ``tensorboard/`` and ``csv/metrics.csv``.

    Args:
        names: the loggers.
        folder: the folder of the stage.
        complete: the figures of the epochs that are complete if the training is resumed. The CSV file is written again
            with them, so that it has each epoch once. In TensorBoard, a new file of events replaces those of later
            epochs, which a kill left.
    """

    def __init__(self, names: Sequence[str], folder: Path, complete: Sequence[Mapping[str, Any]]) -> None:
        self._loggers: list[Logger] = []
        with _told(folder):
            if "tensorboard" in names:
                self._loggers.append(_tensorboard(folder, len(complete)))
            if "csv" in names:
                self._loggers.append(_csv(folder, complete))
        self.folder = folder

    def epoch(self, epoch: int, figures: Mapping[str, Any]) -> None:
        """Write the figures of an epoch, counted from 0, with ``epoch + 1`` as the step."""
        with _told(self.folder):
            for logger in self._loggers:
                logger.log_metrics(_numbers(figures), epoch + 1)
                logger.save()

    def close(self) -> None:
        """Close the files."""
        with _told(self.folder):
            for logger in self._loggers:
                logger.finalize("success")
        self._loggers.clear()


def _tensorboard(folder: Path, complete: int) -> "Logger":
    from lightning_fabric.loggers import TensorBoardLogger

    if not complete:
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    # An event of this step or a later one that is in an older file is discarded by TensorBoard.
    return TensorBoardLogger(folder, name="", version="tensorboard", purge_step=complete + 1)


def _csv(folder: Path, complete: Sequence[Mapping[str, Any]]) -> "Logger":
    from lightning_fabric.loggers import CSVLogger

    # The logger cannot continue a file: it would delete it, with a warning.
    (folder / "csv" / "metrics.csv").unlink(missing_ok=True)
    logger = CSVLogger(folder, name="", version="csv")
    for record in complete:
        logger.log_metrics(_numbers(record), record["epoch"])
    logger.save()
    return logger


def _numbers(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in figures.items()
        if isinstance(value, int | float) and name not in ("epoch", "step")
    }


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write the logs in {folder}: {error.strerror or first_line(error)}") from error
