"""How good a classifier is. Figures are in percent."""

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
        model: images -> logits (B, K), on the batches' device.
        batches: images and labels; of several processes each has its own, with indices, and all images are in one.

    Returns:
        Logits (N, K), float32, and labels (N,), on the CPU; of all processes' images, in their order.
    """
    with eval_mode(model):
        own = [(model(batch.images).float(), batch.labels, batch.indices) for batch in batches]
    if collectives.world() == 1:
        logits, labels, _ = zip(*own, strict=True)
        return torch.cat(logits).cpu(), torch.cat(labels).cpu()
    sent = [tuple(value.cpu() for value in part if value is not None) for part in own]
    logits, labels, indices = zip(*(part for each in collectives.all_gather_object(sent) for part in each), strict=True)
    order = torch.cat(indices).argsort()
    return torch.cat(logits)[order], torch.cat(labels)[order]


def mean_losses(method: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
    """The losses of a method over images that it is not trained on, in evaluation mode.

    Args:
        method: see ``methods.base``.
        batches: images and labels, see ``predict``.
    """
    own: list[tuple[int, int, dict[str, float]]] = []  # first image, images, losses
    with eval_mode(method):
        for batch in batches:
            losses = {name: value.item() for name, value in method(*batch).items()}
            own.append((0 if batch.indices is None else int(batch.indices[0]), len(batch.labels), losses))
    parts = [part for each in collectives.all_gather_object(own) for part in each]
    if collectives.world() > 1:
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
    likeliest = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]  # (N, 5)
    return {
        "loss": F.cross_entropy(logits, labels).item(),
        "top1": percent((logits.argmax(1) == labels).float().mean()),
        "top5": percent(likeliest.any(1).float().mean()),
    }


def at_chance(top1: float, classes: int, images: int) -> bool:
    """Whether an accuracy cannot be told from guessing: at most three standard errors, or half, above 1 / classes.

    Args:
        top1: in percent.
        classes: the number of classes.
        images: the number of images that it was measured on.
    """
    chance = 1 / classes
    error = (chance * (1 - chance) / images) ** 0.5
    return bool(top1 <= 100 * (chance + min(3 * error, chance / 2)))


def percent(share: Tensor) -> float:
    """A share in percent; float32 carries no more than these digits."""
    return round(100 * share.item(), 4)
