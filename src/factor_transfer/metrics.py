"""The metrics of torchmetrics, also where torchvision is installed but cannot be imported.

torchmetrics imports torchvision wherever it is installed, for metrics that are not used here. Beside a torch of another
build that fails (torchmetrics issue 3098), and must not keep anyone from training.
"""

import sys
from importlib import import_module


def _import_torchmetrics() -> None:
    try:
        import_module("torchmetrics")
    except RuntimeError as error:
        flags = sys.modules.get("torchmetrics.utilities.imports")
        if "torchvision::" not in str(error) or flags is None:
            raise
        # What it asks before it imports torchvision; the modules that were imported so far hold the same object.
        flags._TORCHVISION_AVAILABLE.available = False
        import_module("torchmetrics")


_import_torchmetrics()

from torchmetrics import Metric, MetricCollection  # noqa: E402
from torchmetrics.classification import (  # noqa: E402
    BinaryCalibrationError,
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

__all__ = [
    "BinaryCalibrationError",
    "Metric",
    "MetricCollection",
    "MulticlassAccuracy",
    "MulticlassCalibrationError",
    "MulticlassF1Score",
    "MulticlassPrecision",
    "MulticlassRecall",
]
