"""Between teacher and student: paraphrasers, and the terms of a recipe's method."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import nn

from factor_transfer.errors import InputError
from factor_transfer.files import load_into
from factor_transfer.methods import TERMS, Distillation, Pair, Paraphraser, Side, Supervised, Teacher, Term
from factor_transfer.methods.base import Method
from factor_transfer.models import Normalize
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.settings import chosen
from factor_transfer.taps.stages import feature_shape


def new_paraphrasers(experiment: Experiment, teacher: nn.Module, normalize: Normalize) -> dict[str, Paraphraser]:
    """One for each of the teacher's taps, as the recipe describes it, with random weights, on the device."""
    images = normalize(experiment.examples[:2])
    section = experiment.recipe.paraphraser
    assert section is not None
    if len(set(experiment.taps[0])) < len(experiment.taps[0]):
        raise InputError(f"teacher.tap names a tap twice: {', '.join(experiment.taps[0])}; give each once")
    arguments, device = chosen(section, Paraphraser), experiment.fabric.device
    return {
        tap: Paraphraser(feature_shape(teacher, tap, images)[0], **arguments).to(device) for tap in experiment.taps[0]
    }


def as_product(paraphrasers: Mapping[str, Paraphraser]) -> nn.Module:
    """What a stage's weights hold: the paraphraser, or a list of them where there are several taps."""
    several = list(paraphrasers.values())
    return several[0] if len(several) == 1 else nn.ModuleList(several)


def load_paraphrasers(experiment: Experiment, done: Artefact) -> dict[str, Paraphraser]:
    """The paraphrasers of a finished stage, by tap, on the device."""
    section = experiment.recipe.paraphraser
    assert section is not None
    arguments = chosen(section, Paraphraser)
    paraphrasers = {
        tap: Paraphraser(channels, **arguments).to(experiment.fabric.device)
        for tap, channels in done.record["in_channels"].items()
    }
    load_into(as_product(paraphrasers), done.state(), done.weights)
    return paraphrasers


def frozen_teacher(experiment: Experiment, model: nn.Module, normalize: Normalize) -> Teacher:
    """A trained network as teacher: frozen, and as cheap as its figures allow."""
    precision = experiment.recipe.teacher_precision
    return Teacher(model, normalize, experiment.examples, reduced=precision == "bf16-mixed")


def connect(
    experiment: Experiment,
    student: nn.Module,
    teacher: Teacher,
    normalize: Normalize,
    paraphrasers: Mapping[str, Paraphraser],
) -> Distillation:
    """The student's training by the terms of the recipe's method.

    Args:
        experiment: whose recipe says the terms.
        student: to be trained.
        teacher: see ``frozen_teacher``; other methods may have it, too.
        normalize: of the student.
        paraphrasers: trained, by tap.

    Raises:
        InputError: a term that these two networks cannot have.
    """
    teacher_taps, student_taps = experiment.taps
    known, prepare = teacher.module.model, teacher.module.prepare
    examples = experiment.examples
    pair = Pair(
        Side(known, teacher_taps, examples if prepare is None else prepare(examples)),
        Side(student, student_taps, normalize(examples)),
        paraphrasers,
        experiment.data.train.labels,
    )
    terms = experiment.recipe.terms
    for name in terms:
        adapted = TERMS[name].adapt(pair, **chosen(terms[name], TERMS[name].adapt))
        if adapted is not student:
            if len(terms) > 1:
                raise InputError(f"{name} puts another network in the student's place, so it cannot be in a sum")
            student = experiment.fabric.to_device(adapted)
            pair = replace(pair, student=Side(student, student_taps, pair.student.images))
    made: dict[str, Term] = {}
    for name in terms:
        arguments = chosen(terms[name], TERMS[name], TERMS[name].between)
        made[name] = TERMS[name].between(pair, **arguments).to(experiment.fabric.device)
    return Distillation(student, teacher, made, normalize)


def preflight(experiment: Experiment, methods: Iterable[str]) -> None:
    """Try every method between the recipe's networks, untrained: what cannot work is told before hours of training.

    Raises:
        InputError: a tap that does not exist, a term that these networks cannot have.
    """
    recipe = experiment.recipe
    state = torch.random.get_rng_state()
    for method in methods:
        other = experiment.with_method(method)
        student, teacher = other.build(recipe.student), other.build(recipe.teacher)
        own, its = (other.normalize(other.statistics(section)) for section in (recipe.student, recipe.teacher))
        training: Method = Supervised(student, own)
        if other.recipe.terms:
            needed = any(TERMS[name].needs_paraphraser for name in other.recipe.terms)
            paraphrasers = new_paraphrasers(other, teacher, its) if needed else {}
            training = connect(other, student, Teacher(teacher, its), own, paraphrasers)
        training.eval()
        device = experiment.fabric.device
        with torch.no_grad():
            training(
                experiment.examples[:2], experiment.data.train.labels[:2].to(device), torch.arange(2, device=device)
            )
    torch.random.set_rng_state(state)
