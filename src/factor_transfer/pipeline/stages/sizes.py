"""The sizes of the networks and of the layers that are only used in training: paraphrasers and layers of terms."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from factor_transfer.methods import Distillation, Paraphraser
from factor_transfer.models import macs, parameters
from factor_transfer.models.inference import eval_mode
from factor_transfer.pipeline.experiment import Experiment

_NAMES = {"factor": "the translator", "paraphraser": "the paraphraser"}
_NETWORKS = "teacher", "student"


class Size(NamedTuple):
    """The size of one part of a training.

    Attributes:
        parameters: the number of parameters.
        macs: the multiply-accumulates of a forward pass for one image.
    """

    parameters: int
    macs: int


def part_sizes(
    experiment: Experiment, method: Distillation, paraphrasers: Mapping[str, Paraphraser]
) -> dict[str, Size]:
    """The sizes of teacher and student, of the paraphrasers if there are any, and of the terms' trained layers."""
    images, labels = experiment.examples[:2], experiment.data.train.labels[:2].to(experiment.fabric.device)
    with eval_mode(method), FlopCounterMode(display=False) as counter:
        method(images, labels, torch.arange(len(labels), device=labels.device))
    flops = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}

    def cost(path: str) -> int:
        return flops.get(f"{type(method).__name__}.{path}", 0) // (
            2 * len(labels)
        )  # a multiply-accumulate counts as two operations

    found = {
        "teacher": Size(parameters(method.teacher.module.model), cost("teacher")),
        "student": Size(parameters(method.student.model), cost("student")),
    }
    if paraphrasers:
        with eval_mode(method):
            features = method.teacher(images).features
        paraphraser_macs = sum(macs(paraphraser, features[tap].float()) for tap, paraphraser in paraphrasers.items())
        found["paraphraser"] = Size(sum(map(parameters, paraphrasers.values())), paraphraser_macs)
    for name, term in method.named_terms():
        trained = sum(parameter.numel() for parameter in term.parameters() if parameter.requires_grad)
        if trained:
            found[name] = Size(trained, cost(f"terms.{name}"))
    return found


def size_warnings(sizes: Mapping[str, Size]) -> list[str]:
    """Warnings about parts that are only used in training and cost more than the network that they run with.

    Paraphrasers run with the teacher; translators and other layers of terms run with the student.
    """
    found = []
    for part, size in sizes.items():
        network = "teacher" if part == "paraphraser" else "student"
        if part not in _NETWORKS and size.macs > sizes[network].macs:
            remedy = ". A tap with fewer channels makes it smaller; `factor-transfer show taps MODEL` lists them"
            found.append(
                f"{_name(part)} {'costs' if part in _NAMES else 'cost'} more than the {network}: {size.macs:,} "
                f"multiply-accumulates per image, where the {network} has {sizes[network].macs:,}, and "
                f"{size.parameters:,} parameters{remedy if part in _NAMES else ''}"
            )
    return found


def size_line(sizes: Mapping[str, Size]) -> str:
    """The numbers of parameters of the student and of the parts that are only used in training, in one line."""
    extra = ", ".join(f"{_name(part)} {size.parameters:,}" for part, size in sizes.items() if part not in _NETWORKS)
    return f"sizes  parameters of the student: {sizes['student'].parameters:,}; only used in training: {extra}"


def print_sizes(experiment: Experiment, method: Distillation, paraphrasers: Mapping[str, Paraphraser]) -> None:
    """Print the sizes and the warnings of a training, once per command."""
    sizes = part_sizes(experiment, method, paraphrasers)
    if len(sizes) > len(_NETWORKS):
        experiment.say_once(size_line(sizes))
    for warning in size_warnings(sizes):
        experiment.say_once(f"Warning: {warning}")


def _name(part: str) -> str:
    return _NAMES.get(part, f"the layers of {part}")
