"""Look before a long run: what ``factor-transfer check`` finds out on a few batches, and leaves no trace of."""

import math
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from factor_transfer import artefact
from factor_transfer.artefact import Artefact
from factor_transfer.budget import Budget, measure_training
from factor_transfer.data import Augment, Batch, Batches
from factor_transfer.evaluation import top
from factor_transfer.experiment import Experiment
from factor_transfer.inference import evaluating
from factor_transfer.inputs import paraphraser_inputs, teacher_inputs
from factor_transfer.methods import TERMS, Distillation, Paraphraser, ParaphraserTraining, Supervised
from factor_transfer.methods.base import Method
from factor_transfer.models import Normalize, macs, parameters
from factor_transfer.options import chosen
from factor_transfer.pairing import connect, load_paraphrasers, new_paraphrasers
from factor_transfer.recipe import Training
from factor_transfer.stages import starting_network
from factor_transfer.taps import Taps

BATCHES = 3  # that losses and gradients are looked at with
IMAGES = 500  # that accuracies are measured with, at most
NEGLIGIBLE, DROWNING = 0.05, 20.0  # a term's gradient, relative to the cross-entropy's


def check(experiment: Experiment) -> dict[str, Any]:
    """Try a recipe: its networks as they are now, trained or not.

    Returns:
        ``networks``, ``teacher``, ``taps``, ``paraphraser``, ``terms``, ``stages`` and ``warnings``.

    Raises:
        InputError: what could not work later does not work now either.
    """
    recipe = experiment.recipe
    warnings: list[str] = []
    done = _finished(experiment, "teacher", teacher_inputs(experiment))
    if done:
        teacher, statistics = experiment.load(done), (done.record["mean"], done.record["std"])
    else:
        teacher, record = starting_network(experiment, "teacher", recipe.teacher)
        statistics = record["mean"], record["std"]
    teacher_normalize = experiment.normalize(statistics)
    student, record = starting_network(experiment, "student", recipe.student)
    normalize = experiment.normalize((record["mean"], record["std"]))

    needs_paraphraser = any(TERMS[name].needs_paraphraser for name in recipe.terms)
    paraphrasers: dict[str, Paraphraser] = {}
    trained: Artefact | None = None
    if needs_paraphraser:
        trained = _finished(experiment, "paraphraser", paraphraser_inputs(experiment, done)) if done else None
        paraphrasers = (
            load_paraphrasers(experiment, trained)
            if trained
            else new_paraphrasers(experiment, teacher, teacher_normalize)
        )
    found: dict[str, Any] = {"networks": {}}
    image = normalize(experiment.examples[:1])
    for name, model in (("teacher", teacher), ("student", student)):
        size = sum(value.nbytes for value in model.state_dict().values())
        found["networks"][name] = {"parameters": parameters(model), "macs": macs(model, image), "bytes": size}
    found["teacher"] = _teacher(experiment, teacher, teacher_normalize, done, warnings)
    found["taps"] = _taps(experiment, (teacher, teacher_normalize), (student, normalize))
    found["paraphraser"] = (
        _paraphraser(experiment, teacher, teacher_normalize, paraphrasers, trained is not None)
        if needs_paraphraser
        else None
    )
    stages: dict[str, Budget | None] = {}
    if recipe.teacher.epochs is not None:
        stages["teacher"] = _cost(experiment, Supervised(teacher, teacher_normalize), recipe.teacher)
    if needs_paraphraser and recipe.paraphraser and recipe.paraphraser.epochs is not None:
        training = ParaphraserTraining(
            teacher,
            list(paraphrasers),
            list(paraphrasers.values()),
            teacher_normalize,
            **chosen(recipe.paraphraser, ParaphraserTraining),
        )
        stages["paraphraser"] = _cost(experiment, training, recipe.paraphraser)
    method: Method = Supervised(student, normalize)
    found["terms"] = {}
    if recipe.terms:
        method = connect(experiment, student, teacher, (normalize, teacher_normalize), paraphrasers)
        found["terms"] = _terms(experiment, method, warnings, done is not None)
    stages["student"] = _cost(experiment, method, recipe.student)
    found["stages"] = {name: None if cost is None else cost._asdict() for name, cost in stages.items()}
    return {**found, "warnings": warnings}


def _finished(experiment: Experiment, name: str, inputs: Mapping[str, Any]) -> Artefact | None:
    """A stage, if it is up to date."""
    folder = experiment.work_dir / name
    done = artefact.find(folder)
    return done if done and not artefact.differences(folder, inputs) else None


def _teacher(
    experiment: Experiment, model: nn.Module, normalize: Normalize, done: Artefact | None, warnings: list[str]
) -> dict[str, Any]:
    """Its accuracy, under the recipe's own preprocessing."""
    data = experiment.data
    split, name = (data.validation, "validation") if len(data.validation) else (data.train, "training")
    some = torch.linspace(0, len(split) - 1, min(IMAGES, len(split))).long()
    accuracy = top(*experiment.logits(model, split.subset(some), normalize))["top1"]
    chance = 100 / len(data.classes)
    recorded = done.record["validation"].get("top1") if done and done.record.get("validation") else None
    state = "finished" if done else "given" if experiment.recipe.teacher.weights else "untrained"

    def noise(share: float) -> float:  # three standard errors of a share of so many images
        return 300 * math.sqrt(max(share * (100 - share), 1.0) / 1e4 / len(some))

    if state != "untrained" and accuracy < chance + noise(chance):
        warnings.append(
            f"the teacher is right in {accuracy:.1f} % of {len(some)} {name} images, chance is {chance:.1f} %: are "
            "these its classes, in its order, and its mean and std?"
        )
    elif recorded is not None and accuracy < recorded - noise(recorded):
        warnings.append(
            f"the teacher is right in {accuracy:.1f} % of {len(some)} {name} images; its stage recorded "
            f"{recorded:.1f} %"
        )
    return {
        "state": state,
        "top1": accuracy,
        "images": len(some),
        "split": name,
        "chance": chance,
        "top1_recorded": recorded,
    }


def _taps(
    experiment: Experiment, teacher: tuple[nn.Module, nn.Module], student: tuple[nn.Module, nn.Module]
) -> dict[str, dict[str, list[int]]]:
    """Tap and shape on both sides."""
    result = {}
    for name, (model, normalize), taps in zip(("teacher", "student"), (teacher, student), experiment.taps, strict=True):
        network = Taps(model, taps, normalize)
        with evaluating(network):
            features = network(experiment.examples[:2]).features
        result[name] = {tap: list(feature.shape[1:]) for tap, feature in features.items()}
    return result


def _paraphraser(
    experiment: Experiment,
    teacher: nn.Module,
    normalize: nn.Module,
    paraphrasers: Mapping[str, Paraphraser],
    trained: bool,
) -> dict[str, Any]:
    """How much of the feature is not rebuilt: squared error over the feature's variance; its mean would have 1."""
    network = Taps(teacher, paraphrasers, normalize, logits=False)
    unexplained = {}
    with evaluating(network), torch.no_grad():
        features = network(experiment.examples).features
        for tap, paraphraser in paraphrasers.items():
            feature = features[tap].float()
            with evaluating(paraphraser):
                error = (paraphraser(feature) - feature).pow(2).mean()
            unexplained[tap] = (error / feature.var(unbiased=False).clamp_min(1e-12)).item()
    return {"state": "finished" if trained else "untrained", "unexplained_variance": unexplained}


def _terms(
    experiment: Experiment, method: Distillation, warnings: list[str], taught: bool
) -> dict[str, dict[str, float]]:
    """Each part of the loss at the start of the training: its value, and its shares of the loss and of the gradient."""
    names = ["ce", *method.terms]
    sums = {name: {"weighted": 0.0, "gradient": 0.0} for name in names}
    weights = [parameter for parameter in method.student.parameters() if parameter.requires_grad]
    method.train()
    batches = list(islice(_batches(experiment, experiment.recipe.student), BATCHES))
    for batch in batches:
        losses = method(*batch)
        for name in names:
            loss = losses[f"loss_{name}"]
            gradients = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True) if loss.grad_fn else []
            norm = torch.stack([Tensor.norm(g) for g in gradients if g is not None] or [torch.zeros(())]).norm()
            sums[name]["weighted"] += loss.item() / len(batches)
            sums[name]["gradient"] += norm.item() / len(batches)
    all_loss, all_gradient = (sum(part[key] for part in sums.values()) or 1.0 for key in ("weighted", "gradient"))
    result = {}
    for name, part in sums.items():
        weight = method.cross_entropy if name == "ce" else float(method.terms[name].weight)  # type: ignore[arg-type]
        result[name] = {
            "value": part["weighted"] / weight if weight else 0.0,
            "weight": weight,
            "weighted": part["weighted"],
            "share_of_loss": part["weighted"] / all_loss,
            "share_of_gradient": part["gradient"] / all_gradient,
        }
    if "factor" in sums and sums["ce"]["gradient"] > 0:
        ratio = sums["factor"]["gradient"] / sums["ce"]["gradient"]
        beta = result["factor"]["weight"]
        if beta and not NEGLIGIBLE < ratio < DROWNING and ratio > 0:
            suggested = float(f"{beta / ratio:.1g}")
            result["factor"]["suggested_beta"] = suggested
            kind = "negligible" if ratio <= NEGLIGIBLE else "drowning the labels"
            untaught = "" if taught else ", by an untrained teacher"
            warnings.append(
                f"the factor term is {kind}: its gradient is {ratio:.2g} times the cross-entropy's{untaught}; with "
                f"transfer.factor.beta={suggested:g} they would be equal at the start"
            )
    return result


def _batches(experiment: Experiment, section: Training) -> Iterator[Batch]:
    augment = Augment(**experiment.recipe.augment.model_dump())
    data, device = experiment.data, experiment.fabric.device
    return Batches(data.train, section.batch_size, section.seed, augment, device).epoch(0)


def _cost(experiment: Experiment, method: Method, section: Training) -> Budget:
    """Time and memory that a stage will take."""
    assert section.epochs is not None
    steps = section.epochs * max(1, math.ceil(len(experiment.data.train) / section.batch_size))
    return measure_training(experiment.fabric, method, _batches(experiment, section), section.optimization, steps)
