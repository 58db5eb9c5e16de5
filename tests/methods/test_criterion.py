"""The loss on labels: label smoothing, probabilities in place of classes, and criteria of one's own."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from factor_transfer import (
    DKD,
    KD,
    Distillation,
    FactorTransfer,
    Paraphraser,
    ParaphraserTraining,
    Supervised,
    Translator,
    build_model,
)
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


@pytest.mark.parametrize(("missing", "share"), [(False, 1.0), (False, None), (True, None), (True, 4 / 6)])
def test_a_custom_criterion(missing: bool, share: float | None) -> None:
    teacher, student = networks()
    method = Distillation(student, teacher, {"kd": KD()}, criterion=squared).eval()
    method.labelled_share = share
    labels = torch.tensor([2, -1, 0, 0, -1, 1]) if missing else LABELS
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
    for criterion in (cross_entropy(), nn.CrossEntropyLoss(label_smoothing=0.1), squared):
        for share in (None, 0.5):
            method = Distillation(student, teacher, {"kd": KD(), "dkd": DKD()}, criterion=criterion)
            method.labelled_share = share
            losses = method(IMAGES, unlabelled)
            assert torch.equal(losses["loss"], losses["loss_kd"])
            losses["loss"].backward()
    assert torch.equal(Supervised(student)(IMAGES, unlabelled)["loss"], torch.tensor(0.0))


@pytest.mark.parametrize(
    "criterion",
    [nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 2.0, 1.0])), nn.CrossEntropyLoss(ignore_index=-1), squared],
    ids=["weights", "ignored", "own"],
)
def test_a_criterion_keeps_its_own_settings(criterion: Criterion) -> None:
    teacher, student = networks()
    labels = torch.tensor([2, -1, 0, 0, -1, 1])
    known = labels >= 0
    expected = criterion(student(IMAGES[known]), labels[known])
    for share in (None, 4 / 6):
        method = Distillation(student, teacher, {"kd": KD()}, criterion=criterion).eval()
        method.labelled_share = share
        losses = method(IMAGES, labels)
        found = losses.get("loss_ce", losses.get("loss_labels"))
        assert found is not None
        assert torch.allclose(found, method.cross_entropy * expected)


def test_probabilities_beside_images_without_labels() -> None:
    teacher, student = networks()
    soft = F.one_hot(LABELS, 4).float()
    soft[1] = -1
    method = Distillation(student, teacher, {"kd": KD()}).eval()
    method.labelled_share = 5 / 6
    known = [0, 2, 3, 4, 5]
    expected = F.cross_entropy(student(IMAGES[known]), LABELS[known])
    assert torch.allclose(method(IMAGES, soft)["loss_ce"], method.cross_entropy * expected)


def test_labels_may_be_left_out_where_none_are_used() -> None:
    teacher, student = networks()
    method = Distillation(student, teacher, {"kd": KD()}, criterion=None)
    assert torch.equal(method(IMAGES)["loss"], method(IMAGES, LABELS)["loss"])
    assert method(IMAGES)["accuracy"] == 0


@pytest.mark.parametrize("name", ["ce", "labels", "", "a.b", "items", "type", 3])
def test_names_that_terms_cannot_have(name: str) -> None:
    with pytest.raises(InputError, match="cannot be the name of a term"):
        Distillation(*networks(), {name: KD()})


def test_what_is_frozen_is_not_trained() -> None:
    """A network that has been a teacher is frozen, and so are its copies."""
    teacher, student = networks()
    paraphraser = Paraphraser(8)
    FactorTransfer(paraphraser, Translator(8, 4), "layer3", "layer3")
    Distillation(student, teacher, {"kd": KD()})
    for build in (
        lambda: Supervised(copy.deepcopy(teacher)),
        lambda: Distillation(copy.deepcopy(teacher), teacher, {"kd": KD()}),
        lambda: Distillation(student, student, {"kd": KD()}),
        lambda: ParaphraserTraining(teacher, "layer3", paraphraser),
    ):
        with pytest.raises(InputError, match="is frozen: none of its parameters"):
            build()
    assert Distillation(copy.deepcopy(teacher).requires_grad_(), teacher, {"kd": KD()})(IMAGES, LABELS)["loss"] > 0


def test_without_a_criterion_the_terms_alone_count() -> None:
    teacher, student = networks()
    none: Criterion | None = None
    losses = Distillation(student, teacher, {"kd": KD()}, criterion=none)(IMAGES, LABELS)
    assert set(losses) == {"loss", "loss_kd", "accuracy"}
    assert torch.equal(losses["loss"], losses["loss_kd"])
    with pytest.raises(InputError, match="needs a criterion"):
        Distillation(student, teacher, {}, criterion=None)
