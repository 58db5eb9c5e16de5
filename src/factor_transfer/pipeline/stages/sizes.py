"""How large is what a student is trained with, and then left behind: the paraphraser and the terms' own layers."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from factor_transfer.methods import Distillation, Paraphraser
from factor_transfer.models import macs, parameters
from factor_transfer.models.inference import eval_mode
from factor_transfer.pipeline.experiment import Experiment

_NAMES = {"factor": "the translator", "paraphraser": "the paraphraser"}  # what they are called
_NETWORKS = "teacher", "student"


class Size(NamedTuple):
    """The size of a part of a training.

    Attributes:
        parameters: their number.
        macs: multiply-accumulates of a forward pass of one image.
    """

    parameters: int
    macs: int


def part_sizes(
    experiment: Experiment, method: Distillation, paraphrasers: Mapping[str, Paraphraser]
) -> dict[str, Size]:
    """The sizes of teacher and student, of the paraphraser if there is one, and of each term with layers of its own."""
    images, labels = experiment.examples[:2], experiment.data.train.labels[:2].to(experiment.fabric.device)
    with eval_mode(method), FlopCounterMode(display=False) as counter:
        method(images, labels, torch.arange(len(labels), device=labels.device))
    flops = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}

    def cost(path: str) -> int:
        return flops.get(f"{type(method).__name__}.{path}", 0) // (2 * len(labels))  # a multiply and an add are two

    found = {
        "teacher": Size(parameters(method.teacher.module.model), cost("teacher")),
        "student": Size(parameters(method.student.model), cost("student")),
    }
    if paraphrasers:
        with eval_mode(method):
            features = method.teacher(images).features
        own = sum(macs(paraphraser, features[tap].float()) for tap, paraphraser in paraphrasers.items())
        found["paraphraser"] = Size(sum(map(parameters, paraphrasers.values())), own)
    for name, term in method.named_terms():
        trained = sum(parameter.numel() for parameter in term.parameters() if parameter.requires_grad)
        if trained:
            found[name] = Size(trained, cost(f"terms.{name}"))
    return found


def size_warnings(sizes: Mapping[str, Size]) -> list[str]:
    """Warnings where a part that is left behind costs more than the network beside which it is trained.

    A translator and whatever else a term trains run beside the student, a paraphraser beside the teacher.
    """
    found = []
    for part, size in sizes.items():
        beside = "teacher" if part == "paraphraser" else "student"
        if part not in _NETWORKS and size.macs > sizes[beside].macs:
            found.append(
                f"{_name(part)} costs more than the {beside}: {size.macs:,} multiply-accumulates for an image, where "
                f"the {beside} has {sizes[beside].macs:,}, and {size.parameters:,} parameters. A tap with fewer "
                "channels makes it smaller; `factor-transfer show taps MODEL` lists them"
            )
    return found


def size_line(sizes: Mapping[str, Size]) -> str:
    """What is trained beside the student, in a line."""
    extra = ", ".join(f"{_name(part)} {size.parameters:,}" for part, size in sizes.items() if part not in _NETWORKS)
    return f"sizes  parameters of the student: {sizes['student'].parameters:,}; for the training alone: {extra}"


def say_sizes(experiment: Experiment, method: Distillation, paraphrasers: Mapping[str, Paraphraser]) -> None:
    """Say, once in a command, how large what is left behind is, and warn where it costs more than the student."""
    sizes = part_sizes(experiment, method, paraphrasers)
    if len(sizes) > len(_NETWORKS):
        experiment.say_first(size_line(sizes))
    for warning in size_warnings(sizes):
        experiment.say_first(f"Warning: {warning}")


def _name(part: str) -> str:
    return _NAMES.get(part, f"the layers of {part}")
