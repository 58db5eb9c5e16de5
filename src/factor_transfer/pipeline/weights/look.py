"""A look at a teacher before others learn from it: whether it knows these classes, in this order."""

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

IMAGES = 500  # at most
_SECONDS = 3.0  # at most, of a large network
_FEATURES = 16  # images whose features are computed
_NAMED = 20  # classes whose order a message can hold


@dataclass
class Look:
    """What a few images say of a teacher.

    Attributes:
        top1: its accuracy, in percent.
        images: the number of images.
        split: ``"validation"``, or ``"training"`` where there are no validation images.
        chance: the accuracy of guessing, in percent.
        warnings: what seems to be wrong, in plain words.
    """

    top1: float
    images: int
    split: str
    chance: float
    warnings: list[str] = field(default_factory=list)


def look_at_teacher(experiment: Experiment, model: nn.Module, normalize: Normalize, recorded: float | None) -> Look:
    """Measure a trained teacher on some images, and try whether its outputs are in another order than the classes.

    Args:
        experiment: the experiment.
        model: the teacher: images -> logits (B, K).
        normalize: what turns raw images into its input.
        recorded: its accuracy on the validation images as its stage has it, in percent; ``None`` if it has none.
    """
    data = experiment.data
    split, name = (data.validation, "validation") if len(data.validation) else (data.train, "training")
    began = time.perf_counter()
    experiment.logits(model, split.subset(torch.arange(min(20, len(split)))), normalize)
    # Processes that look together must take the same images: the slowest one says how many.
    took_us = 1 + int(1e6 * (time.perf_counter() - began))
    (slowest_us,) = collectives.all_reduce_max([took_us], experiment.fabric.device)
    affordable = int(20e6 * _SECONDS / slowest_us)
    some = torch.linspace(0, len(split) - 1, min(IMAGES, max(affordable, 50), len(split))).long()
    logits, labels = experiment.logits(model, split.subset(some), normalize)
    found = Look(top(logits, labels)["top1"], len(some), name, 100 / len(data.classes))
    of_images = f"of {found.images} {found.split} images"
    other = _better_order(logits, labels, data.classes)
    if other is not None:
        order, reached, kind = other
        names = ", ".join(f'"{data.classes[number]}"' for number in order)
        remedy = f"teacher.classes=[{names}]" if len(order) <= _NAMED else "teacher.classes, the names in their order"
        found.warnings.append(
            f"the teacher is right in {found.top1:.1f} % {of_images}; with its outputs in {kind} it would be right in "
            f"{reached:.1f} %. If that is the order that it was trained with, give it: {remedy}"
        )
    elif found.top1 < found.chance + _noise(found.chance, found.images):
        found.warnings.append(
            f"the teacher is right in {found.top1:.1f} % {of_images}, chance is {found.chance:.1f} %: are these its "
            "classes, in its order, and its mean and std?"
        )
    elif recorded is not None and found.top1 < recorded - _noise(recorded, found.images):
        found.warnings.append(
            f"the teacher is right in {found.top1:.1f} % {of_images}; its stage recorded {recorded:.1f} %"
        )
    return found


def check_features(model: nn.Module, normalize: Normalize, taps: Sequence[str], examples: Tensor) -> None:
    """Refuse a teacher from which nothing can be learned.

    Args:
        model: images -> logits (B, K).
        normalize: what turns raw images into its input.
        taps: the features that are transferred.
        examples: raw training images (B, C, H, W); the first few are used.

    Raises:
        InputError: its logits or a feature are not finite, or a feature is zero for all of the images.
    """
    network = Taps(model, taps, normalize)
    with eval_mode(network):
        logits, features = network(examples[:_FEATURES])
    places = {"its logits": logits, **{f"its values at {tap}": feature for tap, feature in features.items()}}
    for place, values in places.items():
        if values is not None and not values.isfinite().all():
            raise InputError(
                f"the teacher cannot be learned from: {place} are not finite for the training images. Are its weights "
                "whole, and its mean and std those that it was trained with?"
            )
    for tap, feature in features.items():
        if not feature.any():
            raise InputError(
                f"the teacher cannot be learned from: its values at {tap} are zero for all of the first {len(feature)} "
                "training images. Name another teacher.tap, or another teacher"
            )


def _noise(share: float, images: int) -> float:
    """Three standard errors of a share of so many images, in percent."""
    return 300 * math.sqrt(max(share * (100 - share), 1.0) / 1e4 / images)


def _better_order(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> tuple[list[int], float, str] | None:
    """An order of the outputs, as numbers of classes, in which the teacher would be right far more often.

    The numeric order of the names is tried, which some libraries sort folders by; then whatever order fits the first
    half of the images best, if it holds on the other half.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import, and seldom needed

    first, second = slice(0, None, 2), slice(1, None, 2)
    guesses = [(sorted(range(len(classes)), key=lambda number: _numeric(classes[number])), "their numeric order")]
    counts = torch.zeros(len(classes), len(classes))  # output, class
    counts.index_put_((logits[first].argmax(1), labels[first]), torch.ones(len(labels[first])), accumulate=True)
    guesses.append((linear_sum_assignment(counts.numpy(), maximize=True)[1].tolist(), "another order"))
    held = logits[second], labels[second]
    for order, kind in guesses:
        # Output number i stands for the class order[i].
        permuted = torch.empty_like(logits)
        permuted[:, order] = logits
        now, then = top(*held)["top1"], top(permuted[second], labels[second])["top1"] if len(held[1]) else 0.0
        if len(held[1]) and then > now + max(10.0, _noise(now, len(held[1])) + _noise(then, len(held[1]))):
            return order, top(permuted, labels)["top1"], kind
    return None


def _numeric(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts numbers within names by their value: 2 before 10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdigit() and part.isascii() else (1, 0, part) for part in parts]
