"""Look before a long run: what ``factor-transfer check`` finds out on a few batches, and leaves no trace of."""

import time
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from factor_transfer.commands.equal_images import equal_images
from factor_transfer.commands.profile import Networks, first_of, measure_stages, networks_now, training_batches
from factor_transfer.methods import Distillation
from factor_transfer.models import macs, parameters
from factor_transfer.models.inference import eval_mode
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.stages.student import build_student_method
from factor_transfer.pipeline.stages.teacher import frozen_teacher
from factor_transfer.pipeline.weights.look import look_at_teacher
from factor_transfer.taps.extract import Taps

BATCHES = 3  # that losses and gradients are looked at with
IMAGES = 500  # that accuracies are measured with, at most
_FEATURES = 16  # images whose features are looked at
_SECONDS = 3.0  # that any one look should take; of large networks it is one at fewer images
NEGLIGIBLE, DROWNING = 0.05, 20.0  # a term's gradient, relative to the cross-entropy's


def check(experiment: Experiment) -> dict[str, Any]:
    """Try a recipe: its networks as they are now, trained or not.

    Returns:
        ``networks``, ``teacher``, ``taps``, ``paraphraser``, ``terms``, ``stages``, ``equal_images`` and ``warnings``.

    Raises:
        InputError: what could not work later does not work now either.
    """
    warnings: list[str] = []
    now = networks_now(experiment)
    image = now.of_student(experiment.examples[:1])
    networks = {}
    for name, model in (("teacher", now.teacher), ("student", now.student)):
        size = sum(value.nbytes for value in model.state_dict().values())
        networks[name] = {"parameters": parameters(model), "macs": macs(model, image), "bytes": size}
    found: dict[str, Any] = {
        "networks": networks,
        "teacher": _teacher(experiment, now, warnings),
        "taps": _taps(experiment, now),
        "paraphraser": _paraphraser(experiment, now) if now.paraphrasers else None,
    }
    teacher = frozen_teacher(experiment, now.teacher, now.of_teacher)
    method = build_student_method(experiment, now.student, now.of_student, teacher, now.paraphrasers)
    terms = {}
    if isinstance(method, Distillation):
        # As many images as the teacher was found to afford.
        images = min(64, max(8, found["teacher"]["images"] // 8))
        terms = _terms(experiment, method, images, warnings, found["teacher"]["state"] != "untrained")
    # Last, for its steps change what is trained.
    stages = {name: budget._asdict() for name, budget in measure_stages(experiment, now, method).items()}
    equal = _equal_images(experiment, warnings)
    return {**found, "terms": terms, "stages": stages, "equal_images": equal, "warnings": warnings}


def _equal_images(experiment: Experiment, warnings: list[str]) -> dict[str, Any]:
    """Images that are in two splits, which makes what is measured on them too good."""
    data, test = experiment.data, experiment.test
    found = {
        "test": equal_images("test", test, [data.train, data.validation]),
        "validation": equal_images("validation", data.validation, [data.train]),
    }
    for name, split, learnt in (
        ("test", test, "training and validation"),
        ("validation", data.validation, "training"),
    ):
        count, pairs = found[name]["count"], found[name]["pairs"]
        if count:
            named = ", ".join(" = ".join(pair) for pair in pairs)
            warnings.append(
                f"{count:,} of {len(split):,} {name} images are among the {learnt} images, too: {named}"
                f"{', …' if count > len(pairs) else ''}. What is measured on them is too good; keep them on one side"
            )
    return found


def _teacher(experiment: Experiment, now: Networks, warnings: list[str]) -> dict[str, Any]:
    """Its accuracy, under the recipe's own preprocessing."""
    done = now.done
    recorded = done.record["validation"].get("top1") if done and done.record.get("validation") else None
    state = "finished" if done else "given" if experiment.recipe.teacher.weights else "untrained"
    look = look_at_teacher(experiment, now.teacher, now.of_teacher, recorded)
    if state != "untrained":
        warnings += look.warnings
    return {
        "state": state,
        "top1": look.top1,
        "images": look.images,
        "split": look.split,
        "chance": look.chance,
        "top1_recorded": recorded,
    }


def _taps(experiment: Experiment, now: Networks) -> dict[str, dict[str, list[int]]]:
    """Tap and shape on both sides."""
    result = {}
    sides = ("teacher", now.teacher, now.of_teacher), ("student", now.student, now.of_student)
    for (name, model, normalize), taps in zip(sides, experiment.taps, strict=True):
        network = Taps(model, taps, normalize)
        with eval_mode(network):
            features = network(experiment.examples[:2]).features
        result[name] = {tap: list(feature.shape[1:]) for tap, feature in features.items()}
    return result


def _paraphraser(experiment: Experiment, now: Networks) -> dict[str, Any]:
    """How much of the feature is not rebuilt: squared error over the feature's variance; its mean would have 1."""
    network = Taps(now.teacher, now.paraphrasers, now.of_teacher, logits=False)
    unexplained = {}
    with eval_mode(network):
        features = network(experiment.examples[:_FEATURES]).features
    for tap, paraphraser in now.paraphrasers.items():
        feature = features[tap].float()
        with eval_mode(paraphraser):
            error = (paraphraser(feature) - feature).pow(2).mean()
        unexplained[tap] = (error / feature.var(unbiased=False).clamp_min(1e-12)).item()
    return {"state": "finished" if now.pretrained else "untrained", "unexplained_variance": unexplained}


def _terms(
    experiment: Experiment, method: Distillation, images: int, warnings: list[str], taught: bool
) -> dict[str, dict[str, float]]:
    """Each part of the loss at the start of the training: its value, and its shares of the loss and of the gradient."""
    names = ["ce", *method.terms]
    sums = {name: {"weighted": 0.0, "gradient": 0.0} for name in names}
    weights = [parameter for parameter in method.student.parameters() if parameter.requires_grad]
    method.train()
    began, looks = time.perf_counter(), 0
    for batch in islice(training_batches(experiment, experiment.recipe.student), BATCHES):
        if looks and time.perf_counter() - began > _SECONDS:
            break
        looks += 1
        losses = method(*first_of(batch, images))
        for name in names:
            loss = losses[f"loss_{name}"]
            gradients = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True) if loss.grad_fn else []
            norm = torch.stack([Tensor.norm(g) for g in gradients if g is not None] or [torch.zeros(())]).norm()
            sums[name]["weighted"] += loss.item()
            sums[name]["gradient"] += norm.item()
    for part in sums.values():
        part["weighted"], part["gradient"] = part["weighted"] / looks, part["gradient"] / looks
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
