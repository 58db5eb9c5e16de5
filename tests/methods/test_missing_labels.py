"""Losses of batches in which some images have no label."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from factor_transfer import DKD, KD, Distillation, build_model
from factor_transfer.data import UNLABELLED
from factor_transfer.methods.criterion import accuracy

IMAGES = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([2, -1, -1, 0, -1, -1, 1, -1])
KNOWN = LABELS != UNLABELLED


def method(term: Any, share: float | None = 3 / 8) -> Distillation:
    torch.manual_seed(0)
    teacher, student = (build_model("resnet8", 4, width=4) for _ in range(2))
    found = Distillation(student, teacher, {"term": term})
    found.labelled_share = share
    return found.eval()  # batch norm would mix the images of a batch


def test_labels_count_only_where_they_are_and_terms_everywhere() -> None:
    one = method(KD(temperature=2.0))
    losses = one(IMAGES, LABELS)
    logits = one.student(IMAGES).logits
    assert torch.allclose(losses["loss_ce"], F.cross_entropy(logits[KNOWN], LABELS[KNOWN]) * one.cross_entropy)
    assert torch.equal(losses["loss_term"], one(IMAGES, LABELS.clamp(min=0))["loss_term"])
    assert losses["accuracy"] == pytest.approx(100 * (logits[KNOWN].argmax(1) == LABELS[KNOWN]).float().mean().item())
    # Without the share, by the number of labels in the batch: here, it is the same.
    assert torch.allclose(method(KD(temperature=2.0), share=None)(IMAGES, LABELS)["loss"], losses["loss"])


def test_a_term_that_needs_labels_is_that_of_the_labelled_images() -> None:
    one = method(DKD(warmup_epochs=0.0))
    found = one(IMAGES, LABELS)
    one.labelled_share = None
    expected = one(IMAGES[KNOWN], LABELS[KNOWN])
    for name in ("loss", "loss_ce", "loss_term"):
        assert torch.allclose(found[name], expected[name], atol=1e-6), name


@pytest.mark.parametrize("term", [KD(), DKD(warmup_epochs=0.0)], ids=["kd", "dkd"])
def test_the_loss_does_not_depend_on_how_a_batch_is_divided(term: Any) -> None:
    """Among processes, or into parts, some of which may have no label at all."""
    one = method(term)
    whole = gradient(one, [one(IMAGES, LABELS)["loss"]])
    for cuts in ([4, 4], [1, 2, 3, 2], [2, 2, 2, 2]):
        parts = zip(IMAGES.split(cuts), LABELS.split(cuts), strict=True)
        losses = [one(images, labels)["loss"] * (len(labels) / 8) for images, labels in parts]
        assert torch.allclose(gradient(one, losses), whole, atol=1e-6)


def gradient(one: Distillation, losses: list[Tensor]) -> Tensor:
    weights = [parameter for parameter in one.student.parameters() if parameter.requires_grad]
    return torch.cat([part.flatten() for part in torch.autograd.grad(torch.stack(losses).sum(), weights)])


def test_the_accuracy_of_no_labels_is_0() -> None:
    assert accuracy(torch.eye(3), torch.full((3,), UNLABELLED)) == 0
    assert accuracy(torch.eye(3), torch.tensor([0, 2, UNLABELLED])) == 50
