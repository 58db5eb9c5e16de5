"""Tensors whose shapes do not fit: PyTorch would broadcast them, and a number would come out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from factor_transfer import (
    DIST,
    DKD,
    KD,
    OFD,
    AttentionTransfer,
    Distillation,
    FitNets,
    Term,
    attention_loss,
    dkd_loss,
    factor_loss,
    kd_loss,
    match,
)
from factor_transfer.data import Batch
from factor_transfer.errors import InputError
from factor_transfer.methods.terms.attention import energy_loss
from factor_transfer.methods.terms.crd import nce_loss
from factor_transfer.methods.terms.logits.dist import pearson_distance
from factor_transfer.methods.terms.ofd import partial_distance
from factor_transfer.methods.terms.reviewkd import context_loss
from factor_transfer.models import Normalize
from factor_transfer.taps import Seen
from pairs import IMAGES, INDICES, LABELS, distil, losses, model, only_term, pair, randn


def dkd(student: Tensor, teacher: Tensor, labels: Tensor = LABELS[:4]) -> Tensor:
    return dkd_loss(student, teacher, labels, 1.0, 1.0, 1.0)


def soft(student: Tensor, teacher: Tensor) -> Tensor:
    return kd_loss(student, teacher, 4.0)


def dist(student: Tensor, teacher: Tensor) -> Tensor:
    return DIST().distance(student, teacher, LABELS)


def ofd(student: Tensor, teacher: Tensor, margins: int = 3) -> Tensor:
    return partial_distance(student, teacher, torch.zeros(margins))


@pytest.mark.parametrize(
    ("loss", "student", "teacher"),
    [
        *((loss, (4, 10), teacher) for loss in (soft, dkd, dist) for teacher in ((4, 1), (1, 10), (4, 12), (10,))),
        (soft, (10,), (10,)),
        (pearson_distance, (4, 3), (1, 3)),
        (factor_loss, (4, 3), (1, 3)),
        (attention_loss, (4, 3, 2, 2), (1, 3, 2, 2)),
        (energy_loss, (4, 1, 1, 1), (4, 3, 1, 1)),
        (match, (4, 3, 2, 2), (1, 3, 4, 4)),
        *((loss, (4, 3, 2, 2), (4, 1, 2, 2)) for loss in (ofd, context_loss)),
        *((loss, (4, 3, 2, 2), (1, 3, 2, 2)) for loss in (ofd, context_loss)),
        (lambda one, other: nce_loss(one, other, 1.0, 1.0), (1, 1), (4, 3)),
        (lambda one, other: nce_loss(one, randn(4, 3), other, 1.0), (4, 1), (4, 1)),
        (lambda one, other: ofd(one, one, *other.shape), (4, 3, 2, 2), (1,)),
    ],
)
def test_shapes_that_would_be_broadcast_are_refused(
    loss: Callable[[Tensor, Tensor], Any], student: tuple[int, ...], teacher: tuple[int, ...]
) -> None:
    with pytest.raises(InputError) as error:
        loss(randn(*student), randn(*teacher))
    assert str(student) in str(error.value)
    assert str(teacher) in str(error.value)


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"one class per image.*\(3,\).*\(4, 10\)"):
        dkd(randn(4, 10), randn(4, 10), LABELS[:3])
    with pytest.raises(InputError, match=r"two or more classes.*\(4, 1\)"):
        dkd(randn(4, 1), randn(4, 1))


def test_vectors_are_no_feature_maps() -> None:
    with pytest.raises(InputError, match=r"feature maps.*\(4, 3\)"):
        context_loss(randn(4, 3), randn(4, 3))
    with pytest.raises(InputError, match=r"factors \(B, \.\.\.\).*\(3,\)"):
        factor_loss(randn(3), randn(3))


@pytest.mark.parametrize(
    "make",
    [
        lambda: FitNets([nn.Conv2d(8, 1, 1)], ["layer3"], ["layer3"]),
        lambda: OFD([nn.Conv2d(8, 1, 1)], [torch.zeros(16)], ["layer3"], ["layer3"]),
        lambda: OFD([nn.Conv2d(8, 16, 1)], [torch.zeros(1)], ["layer3"], ["layer3"]),
    ],
)
def test_connectors_of_one_channel_are_refused(make: Callable[[], Term]) -> None:
    both = pair()
    with pytest.raises(InputError, match=r"\(1,\)|\(6, 1, 4, 4\).*\(6, 16, 4, 4\)"):
        losses(Distillation(both.student.model, both.teacher.model, {"hint": make()}))


@pytest.mark.parametrize("term", [KD, DKD, DIST])
def test_networks_with_other_classes_are_refused_in_python(term: type[Term]) -> None:
    method = Distillation(model(classes=4), model(classes=9), {"term": term()})
    with pytest.raises(InputError, match=r"student's have shape \(6, 4\) and the teacher's \(6, 9\)"):
        losses(method)


@pytest.mark.parametrize("name", ["at", "fitnets", "reviewkd", "ofd", "simkd", "crd", "kd", "dkd", "dist"])
def test_a_target_of_other_images_is_refused(name: str) -> None:
    method = distil(name, pair()).eval()
    term = only_term(method)
    target = term.target(method.teacher(IMAGES[:1]))
    with pytest.raises(InputError, match="shape"):
        term(method.student(IMAGES), target, Batch(IMAGES, LABELS[INDICES], INDICES))


def test_attention_of_other_images_is_refused_by_the_term() -> None:
    term = AttentionTransfer(["a"], ["b"])
    with pytest.raises(InputError, match="numbers of samples"):
        term(Seen(None, {"b": randn(4, 2, 3, 3)}), (randn(1, 1, 3, 3),), Batch(IMAGES, LABELS))


@pytest.mark.parametrize(
    ("values", "shape"), [(3, (2, 1, 4, 4)), (1, (2, 3, 4, 4)), (4, (2, 3, 4, 4)), (3, (4, 4)), (3, (1, 4, 4))]
)
def test_images_of_other_channels_are_not_normalised(values: int, shape: tuple[int, ...]) -> None:
    normalize = Normalize([0.5] * values, [0.25] * values)
    with pytest.raises(InputError) as error:
        normalize(torch.zeros(shape, dtype=torch.uint8))
    assert str((values,)) in str(error.value)
    assert str(shape) in str(error.value)


def test_an_image_alone_is_normalised() -> None:
    assert Normalize([0.5] * 3, [0.25] * 3)(torch.zeros(3, 4, 4)).shape == (3, 4, 4)
