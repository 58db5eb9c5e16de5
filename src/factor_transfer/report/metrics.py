"""The figures that ``factor-transfer test`` reports: accuracy, precision, recall, F1 and calibration, also by class."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from factor_transfer.errors import choose
from factor_transfer.training.evaluate import top

METRICS = ("accuracy", "precision", "recall", "f1", "calibration")

_BINS = 15  # as in Guo et al. 2017


class Reliability(NamedTuple):
    """A network's accuracy by its confidence, in bins of confidence that hold any images.

    Attributes:
        confidence: mean of each bin, 0..1.
        accuracy: of each bin, 0..1.
        share: of the images that each bin holds, 0..1.
        error: the expected calibration error, in percent (Guo et al. 2017).
    """

    confidence: Tensor
    accuracy: Tensor
    share: Tensor
    error: float


def reliability(confidence: Tensor, right: Tensor) -> Reliability:
    """How often a network is right, by how sure it is.

    Args:
        confidence: the probability of the answer to each image, 0..1, (N,).
        right: whether the answer is right, bool (N,).
    """
    sure = confidence.double()
    place = (sure * _BINS).ceil().long().clamp(1, _BINS) - 1  # bins are open below, as in the paper
    members = F.one_hot(place, _BINS).double()  # (N, bins)
    count = members.sum(0)
    filled = count > 0
    mean = (members.T @ sure)[filled] / count[filled]
    accuracy = (members.T @ right.double())[filled] / count[filled]
    share = count[filled] / max(len(sure), 1)
    return Reliability(mean, accuracy, share, 100 * ((mean - accuracy).abs() * share).sum().item())


def check_metrics(names: Iterable[str]) -> list[str]:
    """``names`` without repetitions.

    Raises:
        InputError: one is not of ``METRICS``.
    """
    return [choose("metric", name, METRICS) for name in dict.fromkeys(names)]


def measure(logits: Tensor, labels: Tensor, classes: tuple[str, ...], metrics: Iterable[str]) -> dict[str, Any]:
    """Compute all that ``factor-transfer test`` reports.

    Args:
        logits: (N, K).
        labels: int64 (N,).
        classes: K names.
        metrics: of ``METRICS``. Precision, recall and F1 are averaged over the classes that have images or are
            answered; calibration is the expected calibration error in 15 bins (Guo et al. 2017), and of a class that
            of its probability against "is it this class" (Kull et al. 2019).

    Returns:
        ``top1``, ``top5``, ``loss``, ``count`` and each metric; under ``classes``, for each class, its count, ``top1``,
        ``top5`` and each metric (``None`` if it has no images). In percent, but for the counts and the loss.
    """
    wanted = check_metrics(metrics)
    result: dict[str, Any] = {**top(logits, labels), "count": len(labels)}
    by_class: list[dict[str, float | None]] = [{"count": int((labels == index).sum())} for index in range(len(classes))]
    for name, k in (("top1", 1), ("top5", min(5, len(classes)))):
        hits = (logits.topk(k, 1).indices == labels[:, None]).any(1)
        _put(by_class, name, [100 * hits[labels == index].double().mean().item() for index in range(len(classes))])
    scores = _scores(logits.argmax(1), labels, len(classes))
    for name in wanted:
        if name == "calibration":
            overall, values = _calibration(logits.softmax(1), labels)
        elif name == "accuracy":
            overall, values = result["top1"], scores["recall"][1]
        else:
            overall, values = scores[name]
        result[name] = overall
        _put(by_class, name, values)
    return {**result, "classes": dict(zip(classes, by_class, strict=True))}


def _scores(predicted: Tensor, labels: Tensor, count: int) -> dict[str, tuple[float, list[float]]]:
    """Precision, recall and F1: their means over classes, and of each class; in percent."""
    from sklearn.metrics import precision_recall_fscore_support  # slow to import, and needed here alone

    numbers = torch.unique(torch.cat([predicted, labels])).tolist()
    found = precision_recall_fscore_support(labels.numpy(), predicted.numpy(), labels=range(count), zero_division=0.0)
    scores = {}
    for name, values in zip(("precision", "recall", "f1"), found, strict=False):
        percent = [100 * float(value) for value in values]
        scores[name] = sum(percent[number] for number in numbers) / len(numbers), percent
    return scores


def _calibration(probabilities: Tensor, labels: Tensor) -> tuple[float, list[float]]:
    """The calibration error of the answers, and of each class's own probability; in percent."""
    sure, predicted = probabilities.max(1)
    of_classes = [reliability(column, labels == index).error for index, column in enumerate(probabilities.unbind(1))]
    return reliability(sure, predicted == labels).error, of_classes


def _put(by_class: list[dict[str, float | None]], metric: str, values: list[float]) -> None:
    """Note a metric of each class, of which there is none where a class has no images."""
    for figures, value in zip(by_class, values, strict=True):
        figures[metric] = value if figures["count"] else None
