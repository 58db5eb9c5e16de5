"""The paraphraser at work: a feature of the teacher, the factor that is made of it, and what is rebuilt from that."""

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

_SHOWN = 6  # images
_MEASURED = 500  # images, all over the test images, that the error is the mean of


class Paraphrased(NamedTuple):
    """An image on its way through the paraphraser, as pictures (data URIs).

    Maps are means over channels. The feature and its reconstruction share one scale of colours; factors have their own.
    """

    label: int
    image: str
    feature: str
    factor: str
    rebuilt: str
    error: float


class TapReport(NamedTuple):
    """What the paraphraser of one tap does.

    Attributes:
        tap: of the teacher.
        feature: shape of the teacher's feature (m, H, W).
        factor: shape of the factor (z, H, W).
        error: the relative error: the part of the feature's magnitude that is not rebuilt. 0 is perfect.
        images: how many images it is the mean of.
        examples: some of them.
    """

    tap: str
    feature: tuple[int, ...]
    factor: tuple[int, ...]
    error: float
    images: int
    examples: list[Paraphrased]


def paraphrase(experiment: Experiment, teacher: Artefact, paraphraser: Artefact) -> list[TapReport]:
    """Send test images through the teacher and its paraphrasers.

    The translator is not shown beside them: no stage keeps its weights, since it is left behind with the training.

    Args:
        experiment: the recipe that both were trained by, in its work dir.
        teacher: its network.
        paraphraser: trained on that network's features.

    Returns:
        What each tap's paraphraser does.
    """
    paraphrasers = load_paraphrasers(experiment, paraphraser)
    split = experiment.test
    some = split.subset(torch.linspace(0, len(split) - 1, min(_MEASURED, len(split))).long())
    shown = split.subset(_one_a_class(split.labels))
    network = Taps(experiment.load(teacher), list(paraphrasers), experiment.normalize(teacher), logits=False)
    with eval_mode(network):
        (examples,) = [network(batch.images).features for batch in in_order(shown, _SHOWN, experiment.fabric.device)]
        reports = []
        for tap, one in paraphrasers.items():
            lost = magnitude = 0.0
            with eval_mode(one):
                for batch in in_order(some, EVALUATION_BATCH, experiment.fabric.device):
                    feature = network(batch.images).features[tap]
                    lost += F.l1_loss(one(feature), feature, reduction="sum").item()
                    magnitude += feature.abs().sum().item()
                factor = one.encode(examples[tap])
                seen = _examples(shown, examples[tap], factor, one)
            shapes = tuple(examples[tap].shape[1:]), tuple(factor.shape[1:])
            reports.append(TapReport(tap, *shapes, lost / max(magnitude, 1e-12), len(some), seen))
    return reports


def _one_a_class(labels: Tensor) -> Tensor:
    """The first image of some classes, from all over them."""
    present = labels.unique()
    chosen = present[torch.linspace(0, len(present) - 1, min(_SHOWN, len(present))).long()]
    return torch.stack([(labels == label).nonzero()[0, 0] for label in chosen])


def _examples(shown: Split, feature: Tensor, factor: Tensor, paraphraser: Paraphraser) -> list[Paraphrased]:
    rebuilt = paraphraser.decode(factor)
    (batch,) = in_order(shown, _SHOWN)
    examples = []
    for image, label, own, short, again in zip(batch.images, shown.labels, feature, factor, rebuilt, strict=True):
        before, between, after = (one.float().mean(0).cpu() for one in (own, short, again))
        low, high = before.min().item(), before.max().item()
        error = F.l1_loss(again, own) / own.abs().mean().clamp_min(1e-12)
        examples.append(
            Paraphrased(
                int(label),
                picture(image),
                heat_map(before, low, high),
                heat_map(between, between.min().item(), between.max().item()),
                heat_map(after, low, high),
                error.item(),
            )
        )
    return examples
