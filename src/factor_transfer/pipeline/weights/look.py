"""The check of a teacher before distillation: its accuracy, the order of its outputs, and its features."""

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from factor_transfer.distributed import collectives
from factor_transfer.errors import InputError
from factor_transfer.models import Normalize
from factor_transfer.models.inference import eval_mode
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.taps import Taps
from factor_transfer.training.evaluate import top

IMAGES = 500  # the largest number of images that are classified
_SECONDS = 3.0  # the time for classifying them; a large network classifies fewer images
_FEATURES = 16  # the number of images whose features are computed
_NAMED = 20  # the largest number of classes that a message lists


@dataclass
class Look:
    """A teacher's accuracy on a few images.

    Attributes:
        top1: the accuracy, in percent.
        images: the number of images.
        split: ``"validation"``, or ``"training"`` if there are no validation images.
        chance: the accuracy of guessing, in percent.
        warnings: the problems that were found, as sentences.
    """

    top1: float
    images: int
    split: str
    chance: float
    warnings: list[str] = field(default_factory=list)


def look_at_teacher(experiment: Experiment, model: nn.Module, normalize: Normalize, recorded: float | None) -> Look:
    """Evaluate a trained teacher on a few images, and check whether its outputs are in the order of the classes.

    Args:
        experiment: the experiment.
        model: the teacher: images (B, C, H, W) -> logits (B, K).
        normalize: the module that turns raw images into the teacher's input.
        recorded: the validation top-1 in the teacher's record, in percent; ``None`` if there is none.

    Returns:
        The accuracy, with warnings if it is at chance, below the recorded one, or higher for another order of the
        outputs.
    """
    data = experiment.data
    split, name = (data.validation, "validation") if len(data.validation) else (data.train, "training")
    began = time.perf_counter()
    experiment.logits(model, split.subset(torch.arange(min(20, len(split)))), normalize)
    # Processes that evaluate together must use the same images: the slowest one determines how many.
    took_us = 1 + int(1e6 * (time.perf_counter() - began))
    (slowest_us,) = collectives.all_reduce_max([took_us], experiment.fabric.device)
    affordable = int(20e6 * _SECONDS / slowest_us)
    indices = torch.linspace(0, len(split) - 1, min(IMAGES, max(affordable, 50), len(split))).long()
    logits, labels = experiment.logits(model, split.subset(indices), normalize)
    look = Look(top(logits, labels)["top1"], len(indices), name, 100 / len(data.classes))
    accuracy = f"the teacher classifies {look.top1:.1f} % of {look.images} {look.split} images correctly"
    other = _better_order(logits, labels, data.classes)
    if other is not None:
        order, reached, kind = other
        names = ", ".join(f'"{data.classes[number]}"' for number in order)
        remedy = f"teacher.classes=[{names}]" if len(order) <= _NAMED else "teacher.classes=[…], the names in order"
        look.warnings.append(
            f"{accuracy}; with its outputs in {kind} it would classify {reached:.1f} % correctly. If it was trained "
            f"with that order, set {remedy}"
        )
    elif look.top1 < look.chance + _noise(look.chance, look.images):
        look.warnings.append(
            f"{accuracy}, and chance is {look.chance:.1f} %: check its classes, their order, and its mean and std"
        )
    elif recorded is not None and look.top1 < recorded - _noise(recorded, look.images):
        look.warnings.append(f"{accuracy}, but the validation accuracy in its record is {recorded:.1f} %")
    return look


def check_features(
    model: nn.Module, normalize: Normalize, taps: Sequence[str], examples: Tensor, has_classifier: bool = True
) -> None:
    """Check that a teacher's logits and features can be learned from.

    Args:
        model: the teacher: images (B, C, H, W) -> logits (B, K).
        normalize: the module that turns raw images into the teacher's input.
        taps: the taps of the features that are transferred.
        examples: raw training images (B, C, H, W); the first few are used.
        has_classifier: whether its logits are used, too.

    Raises:
        InputError: if the logits or a feature are not finite, or a feature is zero for all images.
    """
    network = Taps(model, taps, normalize, logits=has_classifier)
    with eval_mode(network):
        logits, features = network(examples[:_FEATURES])
    outputs = {"its logits": logits, **{f"its features at {tap}": feature for tap, feature in features.items()}}
    for name, values in outputs.items():
        if values is not None and not values.isfinite().all():
            raise InputError(
                f"the teacher cannot be used: {name} are not finite for the training images. Check that its weights "
                "are intact, and that its mean and std are those that it was trained with"
            )
    for tap, feature in features.items():
        if not feature.any():
            raise InputError(
                f"the teacher cannot be used: its features at {tap} are zero for the first {len(feature)} training "
                "images. Choose another teacher.tap, or another teacher"
            )


def _noise(share: float, images: int) -> float:
    """Three standard errors of a share, in percent, that was measured on this many images."""
    return 300 * math.sqrt(max(share * (100 - share), 1.0) / 1e4 / images)


def _better_order(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> tuple[list[int], float, str] | None:
    """An order of the outputs that makes the teacher far more accurate, or ``None``.

    The numeric order of the names is tried first, because some libraries sort folders that way; then the order that
    fits the first half of the images best. Either must be better on the second half.

    Returns:
        The class of each output, the top-1 for this order in percent, and a description of the order.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import, and seldom needed

    first, second = slice(0, None, 2), slice(1, None, 2)
    guesses = [(sorted(range(len(classes)), key=lambda number: _numeric(classes[number])), "their numeric order")]
    counts = torch.zeros(len(classes), len(classes))  # output, class
    counts.index_put_((logits[first].argmax(1), labels[first]), torch.ones(len(labels[first])), accumulate=True)
    guesses.append((linear_sum_assignment(counts.numpy(), maximize=True)[1].tolist(), "another order"))
    held_out = logits[second], labels[second]
    for order, kind in guesses:
        # Output i stands for the class order[i].
        permuted = torch.empty_like(logits)
        permuted[:, order] = logits
        count = len(held_out[1])
        before, after = top(*held_out)["top1"], top(permuted[second], labels[second])["top1"] if count else 0.0
        if count and after > before + max(10.0, _noise(before, count) + _noise(after, count)):
            return order, top(permuted, labels)["top1"], kind
    return None


def _numeric(name: str) -> list[tuple[int, int, str]]:
    """A sort key that orders the numbers within names by value: 2 before 10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdigit() and part.isascii() else (1, 0, part) for part in parts]
