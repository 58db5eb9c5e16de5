"""TensorBoard and CSV, written by the loggers of Lightning Fabric, each into a folder of the stage."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path


class TensorBoard:
    """The logger for TensorBoard, in the folder ``tensorboard``.

    Args:
        folder: the folder of the stage.
        complete: the figures of the epochs that are complete if the training is resumed. A new file of events replaces
            those of later epochs, which a kill left.
    """

    def __init__(self, folder: Path, complete: Sequence[Mapping[str, float]]) -> None:
        from lightning_fabric.loggers import TensorBoardLogger  # not before it is needed: it takes a second

        if not complete:
            shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        # An event of this step or a later one that is in an older file is discarded by TensorBoard.
        self._logger = TensorBoardLogger(folder, name="", version="tensorboard", purge_step=len(complete) + 1)

    def log(self, epoch: int, figures: Mapping[str, float]) -> None:
        """Write the figures of an epoch, counted from 1."""
        self._logger.log_metrics(figures, epoch)
        self._logger.save()

    def close(self, finished: bool) -> None:
        """Close the files."""
        self._logger.finalize("success")


class Csv:
    """The logger that writes ``csv/metrics.csv``, with a row for each epoch.

    Args:
        folder: the folder of the stage.
        complete: the figures of the epochs that are complete if the training is resumed. The file is written again with
            them, so that it has each epoch once.
    """

    def __init__(self, folder: Path, complete: Sequence[Mapping[str, float]]) -> None:
        from lightning_fabric.loggers import CSVLogger

        # The logger cannot continue a file: it would delete it, with a warning.
        (folder / "csv" / "metrics.csv").unlink(missing_ok=True)
        self._logger = CSVLogger(folder, name="", version="csv")
        for epoch, figures in enumerate(complete, 1):
            self._logger.log_metrics(dict(figures), epoch)
        self._logger.save()

    def log(self, epoch: int, figures: Mapping[str, float]) -> None:
        """Write the figures of an epoch, counted from 1."""
        self._logger.log_metrics(dict(figures), epoch)
        self._logger.save()

    def close(self, finished: bool) -> None:
        """Close the file."""
        self._logger.finalize("success")
