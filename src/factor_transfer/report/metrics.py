"""All that `test` reports: the metrics of torchmetrics, also where torchvision cannot be imported.

That command alone imports it, for it takes seconds. It imports torchvision wherever that is installed, for metrics that
are not used here. Beside a torch of another build that fails (torchmetrics issue 3098), and must not keep anyone from
his figures.
"""

import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from factor_transfer.errors import choose
from factor_transfer.training.evaluate import percent, top


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

from torchmetrics import Metric  # noqa: E402
from torchmetrics.classification import (  # noqa: E402
    BinaryCalibrationError,
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

# What `--metrics` may ask for: the metric, and how it is averaged over all images. A class has its own, not averaged.
AVERAGED: dict[str, tuple[Callable[..., Metric], str]] = {
    "accuracy": (MulticlassAccuracy, "micro"),
    "precision": (MulticlassPrecision, "macro"),
    "recall": (MulticlassRecall, "macro"),
    "f1": (MulticlassF1Score, "macro"),
}
METRICS = (*AVERAGED, "calibration")


def check_metrics(names: Iterable[str]) -> list[str]:
    """``names`` without repetitions.

    Raises:
        InputError: one is not of ``METRICS``.
    """
    return [choose("metric", name, METRICS) for name in dict.fromkeys(names)]


def measure(logits: Tensor, labels: Tensor, classes: tuple[str, ...], metrics: Iterable[str]) -> dict[str, Any]:
    """All that ``factor-transfer test`` reports.

    Args:
        logits: (N, K).
        labels: int64 (N,).
        classes: K names.
        metrics: of ``METRICS``. Precision, recall and F1 are averaged over classes; calibration is the expected
            calibration error in 15 bins (Guo et al. 2017), and of a class that of its probability against "is it
            this class" (Kull et al. 2019).

    Returns:
        ``top1``, ``top5``, ``loss``, ``count`` and each metric; under ``classes``, for each class, its count, ``top1``,
        ``top5`` and each metric (``None`` if it has no images). In percent, but for the counts and the loss.
    """
    count = len(classes)
    probabilities = logits.softmax(1)
    result: dict[str, Any] = {**top(logits, labels), "count": len(labels)}
    by_class: dict[str, dict[str, float | None]] = {
        name: {"count": int((labels == index).sum())} for index, name in enumerate(classes)
    }
    for name, k in (("top1", 1), ("top5", min(5, count))):
        values = MulticlassAccuracy(count, top_k=k, average="none")(logits, labels)
        _put(by_class, name, values)
    for name in check_metrics(metrics):
        if name == "calibration":
            overall = MulticlassCalibrationError(count, n_bins=15)(probabilities, labels)
            values = _class_calibration(probabilities, labels)
        else:
            metric, average = AVERAGED[name]
            overall = metric(count, average=average)(probabilities, labels)
            values = metric(count, average="none")(probabilities, labels)
        result[name] = percent(overall)
        _put(by_class, name, values)
    return {**result, "classes": by_class}


def _class_calibration(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Calibration error of each class's own probability; (K,)."""
    return torch.stack(
        [
            BinaryCalibrationError(n_bins=15)(column, (labels == index).long())
            for index, column in enumerate(probabilities.unbind(1))
        ]
    )


def _put(by_class: dict[str, dict[str, float | None]], metric: str, values: Tensor) -> None:
    """Note a metric of each class, (K,); of a class without images there is none."""
    for figures, value in zip(by_class.values(), values, strict=True):
        figures[metric] = percent(value) if figures["count"] else None
