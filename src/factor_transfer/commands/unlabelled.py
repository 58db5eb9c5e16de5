"""The comparison of images without labels with the labelled training images, for ``check``."""

from typing import Any

import torch
from torch import Tensor

from factor_transfer.data import Split
from factor_transfer.models import Normalize
from factor_transfer.pipeline.experiment import Experiment

_IMAGES = 500  # the largest number of images of each kind that are compared
# A warning is given if the means of a channel differ by more than this many standard deviations of the labelled images,
# if one standard deviation is more than this many times the other, or if the teacher's confidence on unlabelled images
# is less than this share of that on labelled ones.
_SHIFT, _SPREAD, _CONFIDENCE = 0.5, 2.0, 0.75


def compare_unlabelled(
    experiment: Experiment, teacher: torch.nn.Module, normalize: Normalize, is_trained: bool
) -> tuple[dict[str, Any], list[str]]:
    """Compare images without labels with the labelled ones: their pixels, and the teacher's confidence.

    Args:
        experiment: the experiment, whose data has images without labels.
        teacher: the teacher: images (B, C, H, W) -> logits (B, K).
        normalize: the module that turns raw images into the teacher's input.
        is_trained: whether the teacher is trained; otherwise, its confidence is not measured.

    Returns:
        The composition of a batch (``labelled_per_batch``, ``unlabelled_per_batch``, ``steps`` per epoch), the ``mean``
        and ``std`` of each channel, in 0..1, and the teacher's mean ``confidence``, in 0..1, each as a pair of
        labelled and unlabelled images; and warnings, if the images look different.
    """
    data, mixture = experiment.data, experiment.mixture
    assert data.unlabelled is not None
    assert mixture is not None
    parts = [_part(split) for split in (data.train, data.unlabelled)]
    pixels = [part.images[:].float() / 255 for part in parts]
    means, stds = ([getattr(images, name)((0, 2, 3)) for images in pixels] for name in ("mean", "std"))
    confidence = None
    if is_trained:
        logits = [experiment.logits(teacher, part, normalize)[0] for part in parts]
        confidence = [found.softmax(1).amax(1).mean().item() for found in logits]
    found = {
        "images": len(data.unlabelled),
        "labelled_per_batch": mixture.labelled_per_batch,
        "unlabelled_per_batch": mixture.unlabelled_per_batch,
        "steps": mixture.steps,
        "mean": [mean.tolist() for mean in means],
        "std": [std.tolist() for std in stds],
        "confidence": confidence,
    }
    return found, _warnings(means, stds, confidence)


def _part(split: Split) -> Split:
    """At most ``_IMAGES`` images, evenly spaced over a split."""
    return split.subset(torch.linspace(0, len(split) - 1, min(_IMAGES, len(split))).long())


def _warnings(means: list[Tensor], stds: list[Tensor], confidence: list[float] | None) -> list[str]:
    differences = []
    if ((means[1] - means[0]).abs() > _SHIFT * stds[0]).any():
        differences.append(f"the mean of their channels is {_row(means[1])} instead of {_row(means[0])}")
    ratio = stds[1] / stds[0].clamp_min(1e-6)
    if ((ratio > _SPREAD) | (ratio < 1 / _SPREAD)).any():
        differences.append(f"the standard deviation is {_row(stds[1])} instead of {_row(stds[0])}")
    if confidence is not None and confidence[1] < _CONFIDENCE * confidence[0]:
        differences.append(f"the teacher's mean confidence is {confidence[1]:.0%} instead of {confidence[0]:.0%}")
    if not differences:
        return []
    return [
        f"the images without labels look different from the labelled ones: {'; '.join(differences)}. What the student "
        "learns from them may not help it on the labelled classes"
    ]


def _row(values: Tensor) -> str:
    return ", ".join(f"{value:.2f}" for value in values.tolist())
