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
    """A network's accuracy as a function of its confidence, in the non-empty bins of confidence.

    Attributes:
        confidence: the mean confidence of each bin, in 0..1.
        accuracy: the accuracy of each bin, in 0..1.
        share: the fraction of the images in each bin, in 0..1.
        error: the expected calibration error, in percent (Guo et al. 2017).
    """

    confidence: Tensor
    accuracy: Tensor
    share: Tensor
    error: float


def reliability(confidence: Tensor, correct: Tensor) -> Reliability:
    """The accuracy of a network as a function of its confidence, and its calibration error.

    Args:
        confidence: the probability of the predicted class of each image, in 0..1, (N,).
        correct: whether each prediction is correct, bool (N,).

    Example:
        >>> import torch
        >>> from factor_transfer.report.metrics import reliability
        >>> round(reliability(torch.tensor([0.9, 0.9]), torch.tensor([True, False])).error, 1)
        40.0
    """
    confidence = confidence.double()
    index = (confidence * _BINS).ceil().long().clamp(1, _BINS) - 1  # bins exclude their lower bound, as in the paper
    members = F.one_hot(index, _BINS).double()  # (N, bins)
    count = members.sum(0)
    filled = count > 0
    mean = (members.T @ confidence)[filled] / count[filled]
    accuracy = (members.T @ correct.double())[filled] / count[filled]
    share = count[filled] / max(len(confidence), 1)
    return Reliability(mean, accuracy, share, 100 * ((mean - accuracy).abs() * share).sum().item())


def check_metrics(names: Iterable[str]) -> list[str]:
    """The names of metrics, without duplicates.

    Args:
        names: names from ``METRICS``.

    Raises:
        InputError: if there is no metric of a name.
    """
    return [choose("metric", name, METRICS) for name in dict.fromkeys(names)]


def measure(logits: Tensor, labels: Tensor, classes: tuple[str, ...], metrics: Iterable[str]) -> dict[str, Any]:
    """Compute the figures that ``factor-transfer test`` reports.

    Args:
        logits: the logits, (N, K).
        labels: the labels, int64 (N,).
        classes: the names of the K classes.
        metrics: names from ``METRICS``. Precision, recall and F1 are averaged over the classes that have images or are
            predicted. Calibration is the expected calibration error in 15 bins (Guo et al. 2017); for a single class,
            it is the error of that class's probability (Kull et al. 2019).

    Returns:
        ``top1``, ``top5``, ``loss``, ``count`` and each metric. ``classes`` contains, for each class, its ``count``,
        ``top1``, ``top5`` and each metric, which are ``None`` if the class has no images. All values are in percent,
        except the counts and the loss.

    Raises:
        InputError: if there is no metric of a name.
    """
    names = check_metrics(metrics)
    result: dict[str, Any] = {**top(logits, labels), "count": len(labels)}
    by_class: list[dict[str, float | None]] = [{"count": int((labels == index).sum())} for index in range(len(classes))]
    for name, k in (("top1", 1), ("top5", min(5, len(classes)))):
        hits = (logits.topk(k, 1).indices == labels[:, None]).any(1)
        _put(by_class, name, [100 * hits[labels == index].double().mean().item() for index in range(len(classes))])
    scores = _scores(logits.argmax(1), labels, len(classes))
    for name in names:
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
    """Precision, recall and F1, in percent: the mean over the classes, and the value of each class."""
    from sklearn.metrics import precision_recall_fscore_support  # slow to import, and only needed here

    numbers = torch.unique(torch.cat([predicted, labels])).tolist()
    found = precision_recall_fscore_support(labels.numpy(), predicted.numpy(), labels=range(count), zero_division=0.0)
    scores = {}
    for name, values in zip(("precision", "recall", "f1"), found, strict=False):
        percent = [100 * float(value) for value in values]
        scores[name] = sum(percent[number] for number in numbers) / len(numbers), percent
    return scores


def _calibration(probabilities: Tensor, labels: Tensor) -> tuple[float, list[float]]:
    """The calibration error of the predictions, and of the probability of each class, in percent."""
    confidence, predicted = probabilities.max(1)
    by_class = [reliability(column, labels == index).error for index, column in enumerate(probabilities.unbind(1))]
    return reliability(confidence, predicted == labels).error, by_class


def _put(by_class: list[dict[str, float | None]], metric: str, values: list[float]) -> None:
    """Store a metric for each class; it is ``None`` for a class without images."""
    for figures, value in zip(by_class, values, strict=True):
        figures[metric] = value if figures["count"] else None
