import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from factor_transfer.methods import KD, kd_loss
from factor_transfer.taps import Seen
from pairs import LABELS, distil, losses, pair, randn


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    powers = [math.exp(value - top) for value in row]
    return [power / sum(powers) for power in powers]


def naive_kd(student: Tensor, teacher: Tensor, temperature: float) -> float:
    total = 0.0
    for own, other in zip(student.double().tolist(), teacher.double().tolist(), strict=True):
        p = softmax([value / temperature for value in other])
        q = softmax([value / temperature for value in own])
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(student)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_loss_is_the_formula(temperature: float) -> None:
    student, teacher = 3 * randn(5, 7), 3 * randn(5, 7, seed=1)
    expected = naive_kd(student, teacher, temperature)
    assert kd_loss(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-4)


@given(st.integers(0, 1000), st.floats(-20, 20), st.floats(-20, 20))
def test_a_shift_of_logits_and_the_order_of_classes_do_not_matter(seed: int, a: float, b: float) -> None:
    student, teacher = randn(3, 5, seed=seed), randn(3, 5, seed=seed + 1)
    loss = kd_loss(student, teacher, 2.0).item()
    assert kd_loss(student + a, teacher + b, 2.0).item() == pytest.approx(loss, rel=1e-3, abs=1e-5)
    assert kd_loss(student.flip(1), teacher.flip(1), 2.0).item() == pytest.approx(loss, rel=1e-4)
    assert kd_loss(student, student + a, 2.0).item() == pytest.approx(0, abs=1e-5)


def test_extreme_logits_stay_finite() -> None:
    student = torch.tensor([[500.0, -500.0, 0.0]], requires_grad=True)
    loss = kd_loss(student, torch.tensor([[-500.0, 500.0, 0.0]]), 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(1000)
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_alpha_is_the_share_of_the_soft_answers() -> None:
    method = distil("kd", pair(), alpha=0.3, temperature=2.0).eval()
    figures = losses(method)
    plain = losses(distil("kd", pair(), alpha=1.0, temperature=2.0).eval())
    assert figures["loss_kd"].item() == pytest.approx(0.3 * plain["loss_kd"].item(), rel=1e-5)
    assert plain["loss_ce"].item() == 0
    assert (KD().weight, KD().cross_entropy) == pytest.approx((0.9, 0.1))


def test_the_target_is_the_teachers_logits() -> None:
    logits = randn(len(LABELS), 4)
    assert KD().target(Seen(logits, {})) is logits
