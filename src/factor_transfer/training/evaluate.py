"""Evaluation of a classifier. Shares are in percent."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from factor_transfer.data import Batch
from factor_transfer.distributed import collectives
from factor_transfer.models.inference import eval_mode


def predict(model: nn.Module, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """Run a network over images, in evaluation mode.

    Args:
        model: the network, images (B, C, H, W) -> logits (B, K), on the device of the batches.
        batches: the images and labels. With several processes, each process passes its share of the images, with
            their indices.

    Returns:
        The logits (N, K), float32, and the labels (N,) of the images of all processes, on the CPU, in the order of the
        data set.
    """
    with eval_mode(model):
        local = [(model(batch.images).float(), batch.labels, batch.indices) for batch in batches]
    if collectives.world() == 1:
        logits, labels, _ = zip(*local, strict=True)
        return torch.cat(logits).cpu(), torch.cat(labels).cpu()
    on_cpu = [tuple(value.cpu() for value in part if value is not None) for part in local]
    gathered = collectives.all_gather_object(on_cpu)
    logits, labels, indices = zip(*(part for parts in gathered for part in parts), strict=True)
    order = torch.cat(indices).argsort()
    return torch.cat(logits)[order], torch.cat(labels)[order]


def mean_losses(method: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
    """The mean losses of a method over images that it is not trained on, in evaluation mode.

    Args:
        method: the method, see ``methods.base``.
        batches: the images and labels, see ``predict``.
    """
    local: list[tuple[int, int, dict[str, float]]] = []  # index of the first image, number of images, losses
    with eval_mode(method):
        for batch in batches:
            losses = {name: value.item() for name, value in method(*batch).items()}
            local.append((0 if batch.indices is None else int(batch.indices[0]), len(batch.labels), losses))
    parts = [part for process in collectives.all_gather_object(local) for part in process]
    if collectives.world() > 1:
        parts.sort(key=lambda part: part[0])  # so that sums are rounded as in a single process
    total = sum(count for _, count, _ in parts)
    return {name: sum(losses[name] * count for _, count, losses in parts) / total for name in parts[0][2]}


def top(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """The cross-entropy and the top-1 and top-5 accuracy of predictions.

    Args:
        logits: the logits (N, K).
        labels: the classes of the images, int64 (N,).

    Returns:
        ``loss``, and ``top1`` and ``top5`` in percent. With fewer than five classes, ``top5`` is 100.
    """
    hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]  # (N, 5)
    return {
        "loss": F.cross_entropy(logits, labels).item(),
        "top1": percent((logits.argmax(1) == labels).float().mean()),
        "top5": percent(hits.any(1).float().mean()),
    }


def at_chance(top1: float, classes: int, images: int) -> bool:
    """Whether an accuracy is hardly above chance: by at most three standard errors, or by at most half of chance.

    Chance is 1 / classes.

    Args:
        top1: the top-1 accuracy in percent.
        classes: the number of classes.
        images: the number of images that the accuracy was measured on.
    """
    chance = 1 / classes
    error = (chance * (1 - chance) / images) ** 0.5
    return bool(top1 <= 100 * (chance + min(3 * error, chance / 2)))


def percent(share: Tensor) -> float:
    """A share in percent, rounded to the digits that float32 represents."""
    return round(100 * share.item(), 4)
