"""What tests of terms share: small pairs of networks, and what a training step may change."""

from typing import Any

import torch
from torch import Tensor, nn

from factor_transfer.methods import TERMS, Distillation, Pair, Side, Term
from factor_transfer.models import build_model

CLASSES = 4
LABELS = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3])  # of a training set
INDICES = torch.tensor([7, 0, 3, 10, 5, 1])  # a batch of it
IMAGES = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
SETTINGS: dict[str, dict[str, Any]] = {"crd": {"negatives": 16, "dimension": 8}}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def model(name: str = "resnet8", width: int = 4, classes: int = CLASSES, **args: Any) -> nn.Module:
    return build_model(name, classes, width=width, **args)


def pair(kind: str = "wider") -> Pair:
    """A teacher that is wider than the student, or one that has another number of stages and other sizes of maps."""
    torch.manual_seed(0)
    teacher = model("resnet8", 4) if kind == "wider" else model("resnet18", 2, stem="cifar")
    return make_pair(teacher, model("resnet8", 2))


def make_pair(teacher: nn.Module, student: nn.Module, labels: Tensor | None = LABELS) -> Pair:
    return Pair(Side(teacher, (), IMAGES), Side(student, (), IMAGES), {}, labels)


def distil(name: str, pair: Pair, **settings: Any) -> Distillation:
    """The training of the pair's student by one term."""
    student = TERMS[name].adapt(pair)
    pair = Pair(pair.teacher, Side(student, (), IMAGES), {}, pair.labels)
    term = TERMS[name].between(pair, **SETTINGS.get(name, {}), **settings)
    return Distillation(student, pair.teacher.model, {name: term})


def only_term(method: Distillation) -> Any:
    (term,) = method.terms.values()
    assert isinstance(term, Term)
    return term


def losses(method: Distillation) -> dict[str, Tensor]:
    return method(IMAGES, LABELS[INDICES], INDICES)


def step(method: Distillation, steps: int = 1, learning_rate: float = 0.1) -> None:
    parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, learning_rate)
    method.train()
    for _ in range(steps):
        optimizer.zero_grad()
        losses(method)["loss"].backward()
        optimizer.step()


def copy_of(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {key for key, value in module.state_dict().items() if not torch.equal(value, before[key])}


def reached(module: nn.Module) -> set[str]:
    """Parameters that have a gradient which is not zero."""
    return {name for name, p in module.named_parameters() if p.grad is not None and p.grad.any()}
