"""The loss on labels: label smoothing, probabilities in place of classes, and criteria of one's own."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from factor_transfer import DKD, KD, Distillation, Supervised, build_model
from factor_transfer.errors import InputError
from factor_transfer.methods import Criterion, cross_entropy

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([2, 3, 0, 0, 1, 1])


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return build_model("resnet8", 4, width=2).eval(), build_model("resnet8", 4, width=2).eval()


def squared(logits: Tensor, labels: Tensor) -> Tensor:
    return F.mse_loss(logits.softmax(1), F.one_hot(labels, 4).float())


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_label_smoothing_is_cross_entropy_with_a_smoothed_target(smoothing: float) -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    target = (1 - smoothing) * F.one_hot(LABELS, 4) + smoothing / 4
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    assert torch.allclose(cross_entropy(smoothing)(logits, LABELS), expected)


def test_probabilities_of_classes_are_labels_too() -> None:
    _, student = networks()
    method = Supervised(student)
    hard, soft = method(IMAGES, LABELS), method(IMAGES, F.one_hot(LABELS, 4).float())
    for name in ("loss", "accuracy"):
        assert torch.allclose(hard[name], soft[name]), name
    mixed = torch.tensor([[0.5, 0.5, 0.0, 0.0]]).expand(6, 4)
    expected = -(mixed * student(IMAGES).log_softmax(1)).sum(1).mean()
    assert torch.allclose(method(IMAGES, mixed)["loss"], expected)


def test_a_term_that_needs_classes_refuses_probabilities() -> None:
    teacher, student = networks()
    soft = F.one_hot(LABELS, 4).float()
    assert Distillation(student, teacher, {"kd": KD()})(IMAGES, soft)["loss"].isfinite()
    with pytest.raises(InputError, match="dkd needs the class of each image, but the labels are probabilities"):
        Distillation(student, teacher, {"dkd": DKD()})(IMAGES, soft)


@pytest.mark.parametrize("share", [None, 4 / 6])
def test_a_custom_criterion(share: float | None) -> None:
    teacher, student = networks()
    method = Distillation(student, teacher, {"kd": KD()}, criterion=squared).eval()
    method.labelled_share = share
    labels = LABELS if share is None else torch.tensor([2, -1, 0, 0, -1, 1])
    known = labels >= 0
    losses = method(IMAGES, labels)
    assert set(losses) == {"loss", "loss_labels", "loss_kd", "accuracy"}
    assert torch.allclose(losses["loss_labels"], squared(student(IMAGES)[known], labels[known]) * method.cross_entropy)
    assert torch.allclose(losses["loss"], losses["loss_labels"] + losses["loss_kd"])
    assert torch.allclose(
        Supervised(student, criterion=squared)(IMAGES, LABELS)["loss"], squared(student(IMAGES), LABELS)
    )


def test_a_part_of_a_batch_without_labels_costs_nothing() -> None:
    teacher, student = networks()
    unlabelled = torch.full((6,), -1)
    for criterion in (cross_entropy(), squared):
        method = Distillation(student, teacher, {"kd": KD()}, criterion=criterion)
        method.labelled_share = 0.5
        losses = method(IMAGES, unlabelled)
        assert torch.equal(losses["loss"], losses["loss_kd"])
        losses["loss"].backward()


def test_without_a_criterion_the_terms_alone_count() -> None:
    teacher, student = networks()
    none: Criterion | None = None
    losses = Distillation(student, teacher, {"kd": KD()}, criterion=none)(IMAGES, LABELS)
    assert set(losses) == {"loss", "loss_kd", "accuracy"}
    assert torch.equal(losses["loss"], losses["loss_kd"])
    with pytest.raises(InputError, match="needs a criterion"):
        Distillation(student, teacher, {}, criterion=None)
