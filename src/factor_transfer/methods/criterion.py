"""The loss of the labels: the cross-entropy, or a criterion of one's own."""

from collections.abc import Callable
from typing import TypeGuard

from torch import Tensor, nn
from torch.nn import functional as F

from factor_transfer.data import UNLABELLED

# Logits (B, K) and labels -> the mean loss of the images, 0-d. Labels are classes, int64 (B,), or the probabilities of
# the classes, float (B, K).
Criterion = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(label_smoothing: float = 0.0) -> nn.CrossEntropyLoss:
    """The mean cross-entropy of the images that have a label.

    Args:
        label_smoothing: the probability, in 0..1, that is divided equally among all classes, while the label's class
            gets the rest (Szegedy et al., CVPR 2016, arXiv 1512.00567, section 7).

    Example:
        >>> import torch
        >>> from factor_transfer.methods import cross_entropy
        >>> cross_entropy(label_smoothing=0.1)(torch.zeros(2, 4), torch.tensor([3, 0])).exp()
        tensor(4.)
    """
    return nn.CrossEntropyLoss(ignore_index=UNLABELLED, label_smoothing=label_smoothing)


def loss_of_labels(criterion: Criterion, logits: Tensor, labels: Tensor, labelled_share: float | None) -> Tensor:
    """The loss of the labelled images of a batch, 0-d.

    Args:
        criterion: the loss of logits and labels.
        logits: the logits, (B, K).
        labels: the classes, int64 (B,), or their probabilities, float (B, K); ``UNLABELLED`` for images without one.
        labelled_share: the share of labelled images in each batch, in 0..1. The losses of the images are divided by
            this share of the batch's size, so that a gradient does not depend on how a batch is divided. ``None``
            is the mean of those that have a label; 1.0 promises that all have one.
    """
    if labelled_share == 1.0 or (labels.is_floating_point() and labelled_share is None):
        return criterion(logits, labels)
    if _is_plain(criterion) and not labels.is_floating_point():
        # A sum, whose shape does not depend on the number of labelled images: a GPU need not wait for that number.
        total = F.cross_entropy(
            logits, labels, ignore_index=UNLABELLED, reduction="sum", label_smoothing=criterion.label_smoothing
        )
        if labelled_share is None:
            return total / (labels != UNLABELLED).sum().clamp(min=1)
        return total / (labelled_share * len(labels))
    rows = labelled_rows(labels)
    if not len(rows):  # a small part of a batch may have none
        return 0.0 * logits.sum()
    loss = criterion(logits[rows], labels[rows])
    return loss if labelled_share is None else loss * (len(rows) / (labelled_share * len(labels)))


def _is_plain(criterion: Criterion) -> TypeGuard[nn.CrossEntropyLoss]:
    """Whether a criterion is one that ``cross_entropy`` returns."""
    return (
        type(criterion) is nn.CrossEntropyLoss
        and criterion.ignore_index == UNLABELLED
        and criterion.reduction == "mean"
        and criterion.weight is None
    )


def labelled_rows(labels: Tensor) -> Tensor:
    """The positions of the images with a label in a batch, int64 (M,).

    Args:
        labels: classes, int64 (B,), or their probabilities, float (B, K); ``UNLABELLED`` for images without one.
    """
    known = labels != UNLABELLED
    return (known if known.dim() == 1 else known.all(1)).nonzero().flatten()


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """The top-1 accuracy of the labelled images of a batch in percent, 0-d.

    Args:
        logits: the logits, (B, K).
        labels: the classes, int64 (B,), or their probabilities, float (B, K), of which the most probable class counts.
    """
    if labels.is_floating_point():
        labels = labels.argmax(1)
    known = (labels != UNLABELLED).sum().clamp(min=1)
    return 100 * (logits.detach().argmax(1) == labels).sum() / known
