"""Examples of the paraphraser: features of the teacher, their factors, and the reconstructions from these."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from factor_transfer.data import Split, in_order
from factor_transfer.methods import Paraphraser
from factor_transfer.models.inference import eval_mode
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.pipeline.experiment import EVALUATION_BATCH, Experiment
from factor_transfer.pipeline.stages.paraphraser import load_paraphrasers
from factor_transfer.report.html.images import heat_map, picture
from factor_transfer.taps.extract import Taps

_SHOWN = 6  # the number of example images
_MEASURED = 500  # the number of test images, evenly spaced, that the error is averaged over


class Paraphrased(NamedTuple):
    """An image with its feature, factor and reconstruction, as pictures (data URIs).

    Maps are means over channels. A feature and its reconstruction share one colour scale; a factor has its own.

    Attributes:
        label: the class of the image.
        image: the image.
        feature: the teacher's feature.
        factor: the paraphraser's factor.
        rebuilt: the reconstruction of the feature.
        error: the relative error of the reconstruction.
    """

    label: int
    image: str
    feature: str
    factor: str
    rebuilt: str
    error: float


class TapReport(NamedTuple):
    """The report on the paraphraser of one tap.

    Attributes:
        tap: the tap of the teacher.
        feature: the shape of the teacher's feature, (m, H, W).
        factor: the shape of the factor, (z, H, W).
        error: the relative error of the reconstruction, as a fraction of the feature's magnitude; 0 is perfect.
        images: the number of images that the error is averaged over.
        examples: a few images with their features, factors and reconstructions.
    """

    tap: str
    feature: tuple[int, ...]
    factor: tuple[int, ...]
    error: float
    images: int
    examples: list[Paraphrased]


def paraphrase(experiment: Experiment, teacher: Artefact, paraphraser: Artefact) -> list[TapReport]:
    """Run test images through the teacher and its paraphrasers.

    The translator is not shown, because its weights are not saved after training.

    Args:
        experiment: the experiment that both belong to.
        teacher: the finished teacher.
        paraphraser: the finished paraphraser of that teacher.

    Returns:
        A report on the paraphraser of each tap.
    """
    paraphrasers = load_paraphrasers(experiment, paraphraser)
    split = experiment.test
    measured = split.subset(torch.linspace(0, len(split) - 1, min(_MEASURED, len(split))).long())
    shown = split.subset(_one_per_class(split.labels))
    network = Taps(experiment.load(teacher), list(paraphrasers), experiment.normalize(teacher), logits=False)
    with eval_mode(network):
        (examples,) = [network(batch.images).features for batch in in_order(shown, _SHOWN, experiment.fabric.device)]
        reports = []
        for tap, one in paraphrasers.items():
            lost = magnitude = 0.0
            with eval_mode(one):
                for batch in in_order(measured, EVALUATION_BATCH, experiment.fabric.device):
                    feature = network(batch.images).features[tap]
                    lost += F.l1_loss(one(feature), feature, reduction="sum").item()
                    magnitude += feature.abs().sum().item()
                factor = one.encode(examples[tap])
                paraphrased = _examples(shown, examples[tap], factor, one)
            shapes = tuple(examples[tap].shape[1:]), tuple(factor.shape[1:])
            reports.append(TapReport(tap, *shapes, lost / max(magnitude, 1e-12), len(measured), paraphrased))
    return reports


def _one_per_class(labels: Tensor) -> Tensor:
    """The indices of the first images of a few classes, evenly spaced over all."""
    present = labels.unique()
    chosen = present[torch.linspace(0, len(present) - 1, min(_SHOWN, len(present))).long()]
    return torch.stack([(labels == label).nonzero()[0, 0] for label in chosen])


def _examples(shown: Split, feature: Tensor, factor: Tensor, paraphraser: Paraphraser) -> list[Paraphrased]:
    rebuilt = paraphraser.decode(factor)
    (batch,) = in_order(shown, _SHOWN)
    examples = []
    for image, label, original, code, output in zip(batch.images, shown.labels, feature, factor, rebuilt, strict=True):
        feature_map, factor_map, rebuilt_map = (one.float().mean(0).cpu() for one in (original, code, output))
        low, high = feature_map.min().item(), feature_map.max().item()
        error = F.l1_loss(output, original) / original.abs().mean().clamp_min(1e-12)
        examples.append(
            Paraphrased(
                int(label),
                picture(image),
                heat_map(feature_map, low, high),
                heat_map(factor_map, factor_map.min().item(), factor_map.max().item()),
                heat_map(rebuilt_map, low, high),
                error.item(),
            )
        )
    return examples
