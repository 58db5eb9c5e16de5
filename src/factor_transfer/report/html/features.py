"""Examples of factors: features of the teacher, their factors, the reconstructions from these, and the student's."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from factor_transfer.data import Split, in_order
from factor_transfer.methods import Paraphraser, Translator
from factor_transfer.models.inference import eval_mode
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.pipeline.experiment import EVALUATION_BATCH, Experiment
from factor_transfer.pipeline.stages.paraphraser import load_paraphrasers
from factor_transfer.report.html.images import heat_map, picture
from factor_transfer.taps.extract import Taps

_SHOWN = 6  # the number of example images
_MEASURED = 500  # the number of test images, evenly spaced, that the error is averaged over


class Paraphrased(NamedTuple):
    """An image with its feature, factor, reconstruction and the student's factor, as pictures (data URIs).

    Maps are means over channels. A feature and its reconstruction share one colour scale; factors have their own.

    Attributes:
        label: the class of the image.
        image: the image.
        feature: the teacher's feature.
        factor: the paraphraser's factor.
        rebuilt: the reconstruction of the feature.
        error: the relative error of the reconstruction.
        translated: the factor that the translator computes from the student's feature; empty if it is not known.
    """

    label: int
    image: str
    feature: str
    factor: str
    rebuilt: str
    error: float
    translated: str = ""


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


def paraphrase(experiment: Experiment, teacher: Artefact, paraphraser: Artefact, student: Artefact) -> list[TapReport]:
    """Run test images through the teacher and its paraphrasers, and through the student and its translators.

    Args:
        experiment: the experiment that all belong to.
        teacher: the finished teacher.
        paraphraser: the finished paraphraser of that teacher.
        student: the finished student.

    Returns:
        A report on the paraphraser of each tap.
    """
    paraphrasers = load_paraphrasers(experiment, paraphraser)
    split = experiment.test
    measured = split.subset(torch.linspace(0, len(split) - 1, min(_MEASURED, len(split))).long())
    shown = split.subset(_one_per_class(split.labels))
    network = Taps(experiment.load(teacher), list(paraphrasers), experiment.normalize(teacher), logits=False)
    with eval_mode(network):
        translated = _translated(experiment, student, shown)
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
                paraphrased = _examples(shown, examples[tap], factor, one, translated.get(tap))
            shapes = tuple(examples[tap].shape[1:]), tuple(factor.shape[1:])
            reports.append(TapReport(tap, *shapes, lost / max(magnitude, 1e-12), len(measured), paraphrased))
    return reports


def _one_per_class(labels: Tensor) -> Tensor:
    """The indices of the first images of a few classes, evenly spaced over all."""
    present = labels.unique()
    chosen = present[torch.linspace(0, len(present) - 1, min(_SHOWN, len(present))).long()]
    return torch.stack([(labels == label).nonzero()[0, 0] for label in chosen])


def _translated(experiment: Experiment, student: Artefact, shown: Split) -> dict[str, Tensor]:
    """The factors that a student's translators compute, by the teacher's taps; empty if it has no translators."""
    state = {key: value for key, value in student.connectors().items() if key.startswith("factor.translators.")}
    if not state:
        return {}
    teacher_taps, student_taps = (side.split(", ") for side in student.record["inputs"]["taps"].split(" → "))
    network = Taps(experiment.load(student), student_taps, experiment.normalize(student), logits=False)
    with eval_mode(network):
        (seen,) = [network(batch.images).features for batch in in_order(shown, _SHOWN, experiment.fabric.device)]
    factors = {}
    for index, (teacher_tap, student_tap) in enumerate(zip(teacher_taps, student_taps, strict=True)):
        prefix = f"factor.translators.{index}."
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        kernels = [own[key] for key in sorted(own) if own[key].dim() == 4]
        translator = Translator(
            kernels[0].shape[1], kernels[-1].shape[0], batch_norm=any(key.endswith("running_mean") for key in own)
        )
        translator.load_state_dict(own)
        translator.to(experiment.fabric.device)
        with eval_mode(translator):
            factors[teacher_tap] = translator(seen[student_tap])
    return factors


def _examples(
    shown: Split, feature: Tensor, factor: Tensor, paraphraser: Paraphraser, translated: Tensor | None
) -> list[Paraphrased]:
    rebuilt = paraphraser.decode(factor)
    (batch,) = in_order(shown, _SHOWN)
    examples = []
    rows = zip(batch.images, shown.labels, feature, factor, rebuilt, strict=True)
    for index, (image, label, original, code, output) in enumerate(rows):
        feature_map, factor_map, rebuilt_map = (one.float().mean(0).cpu() for one in (original, code, output))
        low, high = feature_map.min().item(), feature_map.max().item()
        error = F.l1_loss(output, original) / original.abs().mean().clamp_min(1e-12)
        examples.append(
            Paraphrased(
                int(label),
                picture(image),
                heat_map(feature_map, low, high),
                _own_scale(factor_map),
                heat_map(rebuilt_map, low, high),
                error.item(),
                "" if translated is None else _own_scale(translated[index].float().mean(0).cpu()),
            )
        )
    return examples


def _own_scale(values: Tensor) -> str:
    """A map (H, W) as a picture whose colours range from its lowest to its highest value."""
    return heat_map(values, values.min().item(), values.max().item())
