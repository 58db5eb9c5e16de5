"""How good a classifier is. Figures are in percent."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from factor_transfer import processes
from factor_transfer.data import Batch
from factor_transfer.errors import choose
from factor_transfer.inference import evaluating
from factor_transfer.metrics import (
    BinaryCalibrationError,
    Metric,
    MetricCollection,
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


def predict(model: nn.Module, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """Run a network over images, in evaluation mode.

    Args:
        model: images -> logits (B, K), on the batches' device.
        batches: images and labels; of several processes each has its own, with indices, and all images are in one.

    Returns:
        Logits (N, K), float32, and labels (N,), on the CPU; of all processes' images, in their order.
    """
    with evaluating(model):
        own = [(model(batch.images).float(), batch.labels, batch.indices) for batch in batches]
    if processes.world() == 1:
        logits, labels, _ = zip(*own, strict=True)
        return torch.cat(logits).cpu(), torch.cat(labels).cpu()
    sent = [tuple(value.cpu() for value in part if value is not None) for part in own]
    logits, labels, indices = zip(*(part for each in processes.gathered(sent) for part in each), strict=True)
    order = torch.cat(indices).argsort()
    return torch.cat(logits)[order], torch.cat(labels)[order]


def mean_losses(method: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
    """The losses of a method over images that it is not trained on, in evaluation mode.

    Args:
        method: see ``methods.base``.
        batches: images and labels, see ``predict``.
    """
    own: list[tuple[int, int, dict[str, float]]] = []  # first image, images, losses
    with evaluating(method):
        for batch in batches:
            losses = {name: value.item() for name, value in method(*batch).items()}
            own.append((0 if batch.indices is None else int(batch.indices[0]), len(batch.labels), losses))
    parts = [part for each in processes.gathered(own) for part in each]
    if processes.world() > 1:
        parts.sort(key=lambda part: part[0])  # sums are rounded as in one process
    count = sum(images for _, images, _ in parts)
    return {name: sum(losses[name] * images for _, images, losses in parts) / count for name in parts[0][2]}


def top(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Cross-entropy, and the share of images whose label is the likeliest, or among the five likeliest.

    Args:
        logits: (N, K).
        labels: int64 (N,).

    Returns:
        ``loss``, ``top1`` and ``top5`` (of K < 5 classes, all of them), in percent.
    """
    classes = logits.shape[1]
    accuracies = MetricCollection(
        {
            "top1": MulticlassAccuracy(classes, average="micro"),
            "top5": MulticlassAccuracy(classes, top_k=min(5, classes), average="micro"),
        }
    )
    figures = {name: _percent(value) for name, value in accuracies(logits, labels).items()}
    return {"loss": F.cross_entropy(logits, labels).item(), **figures}


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
        result[name] = _percent(overall)
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
        figures[metric] = _percent(value) if figures["count"] else None


def _percent(share: Tensor) -> float:
    """A share in percent; float32 carries no more than these digits."""
    return round(100 * share.item(), 4)
