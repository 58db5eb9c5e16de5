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
from factor_transfer.pipeline.stages.sizes import part_sizes, size_warnings
from factor_transfer.pipeline.stages.student import build_student_method
from factor_transfer.pipeline.stages.teacher import frozen_teacher
from factor_transfer.pipeline.weights.look import look_at_teacher
from factor_transfer.report.names import name_of
from factor_transfer.taps.extract import Taps

BATCHES = 3  # that losses and gradients are looked at with
IMAGES = 500  # that accuracies are measured with, at most
_FEATURES = 16  # images whose features are looked at
_SECONDS = 3.0  # that any one look should take; of large networks it is one at fewer images
NEGLIGIBLE = 0.05  # of the factor term's gradient, relative to the cross-entropy's
DROWNING = 0.9  # of a term's share of the gradient


def check(experiment: Experiment) -> dict[str, Any]:
    """Try a recipe: its networks as they are now, trained or not.

    Returns:
        ``networks``, ``teacher``, ``taps``, ``paraphraser``, ``sizes``, ``terms``, ``stages``, ``equal_images`` and
        ``warnings``.

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
    terms, sizes = {}, {}
    if isinstance(method, Distillation):
        sizes = part_sizes(experiment, method, now.paraphrasers)
        warnings += size_warnings(sizes)
        # As many images as the teacher was found to afford.
        images = min(64, max(8, found["teacher"]["images"] // 8))
        terms = _terms(experiment, method, images, warnings, found["teacher"]["state"] != "untrained")
    # Last, for its steps change what is trained.
    stages = {name: budget._asdict() for name, budget in measure_stages(experiment, now, method).items()}
    equal = _equal_images(experiment, warnings)
    parts = {name: size._asdict() for name, size in sizes.items()}
    return {**found, "sizes": parts, "terms": terms, "stages": stages, "equal_images": equal, "warnings": warnings}


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
    warnings += _balance(result, "" if taught else ", by an untrained teacher")
    return result


def _balance(terms: dict[str, dict[str, float]], untaught: str) -> list[str]:
    """Warnings where one part of the loss leaves the others without effect; a better ``beta`` is put into ``terms``."""
    found = []
    share = {name: part["share_of_gradient"] for name, part in terms.items()}
    if sum(value > 0 for value in share.values()) < 2:
        return []
    ratio = share.get("factor", 0.0) / share["ce"] if share["ce"] else 0.0
    beta = terms["factor"]["weight"] if ratio else 0.0
    remedy = ""
    if beta and (share["factor"] >= DROWNING or ratio <= NEGLIGIBLE):
        suggested = float(f"{beta / ratio:.1g}")
        terms["factor"]["suggested_beta"] = suggested
        remedy = f"; with transfer.factor.beta={suggested:g} it would be as long as the cross-entropy's at the start"
        if ratio <= NEGLIGIBLE:
            found.append(
                f"the factor term is negligible: its gradient is {ratio:.2g} times the cross-entropy's{untaught} (a "
                f"warning comes at {NEGLIGIBLE:g} times or less){remedy}"
            )
    for name, value in share.items():
        if name != "ce" and value >= DROWNING:
            end = remedy if name == "factor" and remedy else "; a lower weight lets the labels have their say"
            found.append(
                f"{name_of(name)} is drowning the other parts of the loss: {value:.1%} of the gradient is its own"
                f"{untaught} (a warning comes from {DROWNING:.0%} on){end}"
            )
    return found
