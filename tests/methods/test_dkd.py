import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from factor_transfer.methods import DKD, dkd_loss, kd_loss
from pairs import randn


def naive_dkd(student: Tensor, teacher: Tensor, labels: list[int], alpha: float, beta: float, t: float) -> float:
    def softmax(row: list[float]) -> list[float]:
        powers = [math.exp(value / t) for value in row]
        return [power / sum(powers) for power in powers]

    total = 0.0
    for own, other, label in zip(student.double().tolist(), teacher.double().tolist(), labels, strict=True):
        q, p = softmax(own), softmax(other)
        target = p[label] * math.log(p[label] / q[label])
        target += (1 - p[label]) * math.log((1 - p[label]) / (1 - q[label]))
        rest = 0.0
        for k in range(len(p)):
            if k != label:
                a, b = p[k] / (1 - p[label]), q[k] / (1 - q[label])
                rest += a * math.log(a / b)
        total += alpha * target + beta * rest
    return t**2 * total / len(labels)


@pytest.mark.parametrize(("alpha", "beta", "t"), [(1.0, 8.0, 4.0), (0.5, 0.0, 1.0), (0.0, 1.0, 2.0)])
def test_loss_is_the_formula(alpha: float, beta: float, t: float) -> None:
    student, teacher, labels = 2 * randn(4, 5), 2 * randn(4, 5, seed=1), [0, 4, 2, 2]
    loss = dkd_loss(student, teacher, torch.tensor(labels), alpha, beta, t)
    assert loss.item() == pytest.approx(naive_dkd(student, teacher, labels, alpha, beta, t), rel=1e-4)


def test_weighted_by_the_teachers_uncertainty_the_two_parts_are_kd() -> None:
    """KD = TCKD + (1 - p_target) * NCKD, sample by sample: the paper's decoupling."""
    student, teacher = randn(1, 6), randn(1, 6, seed=1)
    label = torch.tensor([3])
    doubt = 1 - (teacher / 3).softmax(1)[0, 3].item()
    expected = kd_loss(student, teacher, 3.0).item()
    assert dkd_loss(student, teacher, label, 1.0, doubt, 3.0).item() == pytest.approx(expected, rel=1e-4)


@given(st.integers(0, 1000), st.floats(-20, 20), st.floats(-20, 20))
def test_a_shift_of_logits_and_the_order_of_classes_do_not_matter(seed: int, a: float, b: float) -> None:
    student, teacher, labels = randn(3, 5, seed=seed), randn(3, 5, seed=seed + 1), torch.tensor([0, 2, 4])
    loss = dkd_loss(student, teacher, labels, 1.0, 8.0, 2.0).item()
    assert dkd_loss(student + a, teacher + b, labels, 1.0, 8.0, 2.0).item() == pytest.approx(loss, rel=1e-3, abs=1e-4)
    assert dkd_loss(student.flip(1), teacher.flip(1), 4 - labels, 1.0, 8.0, 2.0).item() == pytest.approx(loss, rel=1e-3)


def test_a_certain_teacher_gives_finite_gradients() -> None:
    student = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)
    dkd_loss(student, torch.tensor([[-300.0, 300.0, 0.0]]), torch.tensor([1]), 1.0, 8.0, 1.0).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_defaults_are_the_authors() -> None:
    term = DKD()
    assert (term.alpha, term.beta, term.temperature, term.warmup_epochs) == (1, 8, 4, 20)
    assert (term.weight, term.cross_entropy) == (1, 1)
