"""The command ``check``: a trial of a recipe on a few batches before a long run. It leaves no files behind."""

import math
import time
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from factor_transfer.commands.profile import Networks, first_of, measure_stages, networks_now
from factor_transfer.commands.unlabelled import compare_unlabelled
from factor_transfer.data.sets.equal_images import describe_equal, equal_images
from factor_transfer.methods import Distillation, terms_of_features
from factor_transfer.models import macs, parameters, state_bytes
from factor_transfer.models.inference import eval_mode
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.stages.sizes import part_sizes, size_warnings
from factor_transfer.pipeline.stages.student import build_student_method
from factor_transfer.pipeline.stages.teacher import frozen_teacher
from factor_transfer.pipeline.weights.look import look_at_teacher
from factor_transfer.report.names import name_of
from factor_transfer.taps.extract import Taps

BATCHES = 3  # the number of batches that losses and gradients are averaged over
IMAGES = 500  # the largest number of images that accuracies are measured on
_FEATURES = 16  # the number of images whose features are reconstructed
_SECONDS = 3.0  # the time for measuring the losses; with large networks, fewer batches are used
# A warning is given if the norm of the factor term's gradient, relative to that of the cross-entropy, is at most this.
NEGLIGIBLE = 0.05
DROWNING = 0.9  # a warning is given if a term's share of the gradient is at least this


def check(experiment: Experiment) -> dict[str, Any]:
    """Run the networks of a recipe on a few batches, as they are now: trained or not.

    Returns:
        ``networks``, ``teacher``, ``taps``, ``paraphraser``, ``sizes``, ``terms``, ``stages``, ``equal_images``,
        ``warnings`` and, if there are images without labels, ``unlabelled``.

    Raises:
        InputError: the recipe cannot be trained, for a reason that a few batches show.
    """
    warnings = experiment.recipe.warnings
    current = networks_now(experiment)
    image = current.of_student(experiment.examples[:1])
    networks = {}
    for name, model in (("teacher", current.teacher), ("student", current.student)):
        size = state_bytes(model)
        networks[name] = {"parameters": parameters(model), "macs": macs(model, image), "bytes": size}
    result: dict[str, Any] = {
        "networks": networks,
        "teacher": _teacher(experiment, current, warnings),
        "taps": _taps(experiment, current),
        "paraphraser": _paraphraser(experiment, current) if current.paraphrasers else None,
    }
    teacher = frozen_teacher(experiment, current.teacher, current.of_teacher)
    method = build_student_method(experiment, current.student, current.of_student, teacher, current.paraphrasers)
    terms, sizes = {}, {}
    trained = result["teacher"]["state"] != "untrained"
    if experiment.data.unlabelled is not None:
        result["unlabelled"], found = compare_unlabelled(
            experiment, current.teacher, current.of_teacher, trained and experiment.recipe.teacher.has_classifier
        )
        warnings += found
    if isinstance(method, Distillation):
        mixture = experiment.mixture
        method.labelled_share = 1.0 if mixture is None else mixture.labelled_share
        sizes = part_sizes(experiment, method, current.paraphrasers)
        warnings += size_warnings(sizes)
        # Where the teacher was slow and so classified few images, the batches are small, too.
        images = min(64, max(8, (result["teacher"]["images"] or IMAGES) // 8))
        terms = _terms(experiment, method, images, warnings, trained)
    # Measured last, since its steps change the weights.
    stages = {name: budget._asdict() for name, budget in measure_stages(experiment, current, method).items()}
    equal = _equal_images(experiment, warnings)
    parts = {name: size._asdict() for name, size in sizes.items()}
    return {**result, "sizes": parts, "terms": terms, "stages": stages, "equal_images": equal, "warnings": warnings}


def _equal_images(experiment: Experiment, warnings: list[str]) -> dict[str, Any]:
    """The images that are in two splits, which makes the accuracy measured on them too high."""
    data, test = experiment.data, experiment.test
    found = {
        "test": equal_images("test", test, [data.train, data.validation]),
        "validation": equal_images("validation", data.validation, [data.train]),
    }
    for name, split, others in (
        ("test", test, "training and validation"),
        ("validation", data.validation, "training"),
    ):
        if found[name]["count"]:
            described = describe_equal(found[name], name, len(split), f"the {others} images")
            warnings.append(
                f"{described}. The accuracy measured on them is too high; keep each image in one split only"
            )
    return found


def _teacher(experiment: Experiment, current: Networks, warnings: list[str]) -> dict[str, Any]:
    """The teacher's accuracy with the preprocessing of the recipe."""
    done = current.done
    recorded = done.record["validation"].get("top1") if done and done.record.get("validation") else None
    state = "finished" if done else "given" if experiment.recipe.teacher.weights else "untrained"
    if not experiment.recipe.teacher.has_classifier:
        return {"state": state, "top1": None, "images": 0, "methods": terms_of_features()}
    look = look_at_teacher(experiment, current.teacher, current.of_teacher, recorded)
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


def _taps(experiment: Experiment, current: Networks) -> dict[str, dict[str, list[int]]]:
    """The shapes of the features of teacher and student, by tap."""
    result = {}
    sides = ("teacher", current.teacher, current.of_teacher), ("student", current.student, current.of_student)
    for (name, model, normalize), taps in zip(sides, experiment.taps, strict=True):
        network = Taps(model, taps, normalize)
        with eval_mode(network):
            features = network(experiment.examples[:2]).features
        result[name] = {tap: list(feature.shape[1:]) for tap, feature in features.items()}
    return result


def _paraphraser(experiment: Experiment, current: Networks) -> dict[str, Any]:
    """The squared error of the paraphraser's reconstruction, relative to the feature's variance."""
    network = Taps(current.teacher, current.paraphrasers, current.of_teacher, logits=False)
    unexplained = {}
    with eval_mode(network):
        features = network(experiment.examples[:_FEATURES]).features
    for tap, paraphraser in current.paraphrasers.items():
        feature = features[tap].float()
        with eval_mode(paraphraser):
            error = (paraphraser(feature) - feature).pow(2).mean()
        unexplained[tap] = (error / feature.var(unbiased=False).clamp_min(1e-12)).item()
    return {"state": "finished" if current.pretrained else "untrained", "unexplained_variance": unexplained}


def _terms(
    experiment: Experiment, method: Distillation, images: int, warnings: list[str], trained_teacher: bool
) -> dict[str, dict[str, float]]:
    """The value of each part of the loss at the start of the training, and its shares of the loss and the gradient."""
    names = [*([] if method.criterion is None else ["ce"]), *method.terms]
    sums = {name: {"weighted": 0.0, "gradient": 0.0} for name in names}
    weights = [parameter for parameter in method.student.parameters() if parameter.requires_grad]
    method.train()
    began, batches = time.perf_counter(), 0
    for batch in islice(experiment.batches("student").epoch(0), BATCHES):
        if batches and time.perf_counter() - began > _SECONDS:
            break
        batches += 1
        losses = method(*first_of(batch, images))
        for name in names:
            loss = losses[f"loss_{name}"]
            gradients = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True) if loss.grad_fn else []
            norm = torch.stack([Tensor.norm(g) for g in gradients if g is not None] or [torch.zeros(())]).norm()
            sums[name]["weighted"] += loss.item()
            sums[name]["gradient"] += norm.item()
    for part in sums.values():
        part["weighted"], part["gradient"] = part["weighted"] / batches, part["gradient"] / batches
    total_loss, total_gradient = (sum(part[key] for part in sums.values()) or 1.0 for key in ("weighted", "gradient"))
    result = {}
    for name, part in sums.items():
        weight = method.cross_entropy if name == "ce" else float(method.terms[name].weight)  # type: ignore[arg-type]
        result[name] = {
            "value": part["weighted"] / weight if weight else 0.0,
            "weight": weight,
            "weighted": part["weighted"],
            "share_of_loss": part["weighted"] / total_loss,
            "share_of_gradient": part["gradient"] / total_gradient,
        }
    for name, part in sums.items():
        if not math.isfinite(part["weighted"] + part["gradient"]):
            warnings.append(f"{name_of(name)}: its loss or its gradient is not finite; a training would stop at once")
        elif name != "ce" and not part["gradient"]:
            warnings.append(f"{name_of(name)} has no gradient, so the student learns nothing from it")
    warnings += _balance(result, "" if trained_teacher else ", with an untrained teacher")
    return result


def _balance(terms: dict[str, dict[str, float]], condition: str) -> list[str]:
    """Warnings about parts of the loss that dominate or have no effect; a better ``beta`` is added to ``terms``."""
    found = []
    shares = {name: part["share_of_gradient"] for name, part in terms.items()}
    if sum(value > 0 for value in shares.values()) < 2:
        return []
    ratio = shares.get("factor", 0.0) / shares["ce"] if shares.get("ce") else 0.0
    beta = terms["factor"]["weight"] if ratio else 0.0
    remedy = ""
    if beta and (shares["factor"] >= DROWNING or ratio <= NEGLIGIBLE):
        suggested = float(f"{beta / ratio:.1g}")
        terms["factor"]["suggested_beta"] = suggested
        remedy = (
            f"; with transfer.factor.beta={suggested:g} its gradient would be as large as the cross-entropy's at the "
            "start of the training"
        )
        if ratio <= NEGLIGIBLE:
            found.append(
                f"the factor term is negligible: its gradient is {ratio:.2g} times the cross-entropy's{condition} "
                f"(this warning appears at {NEGLIGIBLE:g} times or less){remedy}"
            )
    for name, share in shares.items():
        if name != "ce" and share >= DROWNING:
            others = "the labels" if "ce" in shares else "the others"
            end = remedy if name == "factor" and remedy else f"; a lower weight gives {others} more influence"
            found.append(
                f"{name_of(name)} drowns out the other parts of the loss: {share:.1%} of the gradient comes from it"
                f"{condition} (this warning appears from {DROWNING:.0%}){end}"
            )
    return found
