import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from factor_transfer.data import Batch
from factor_transfer.methods import DIST
from factor_transfer.methods.terms.logits.dist import pearson_distance
from factor_transfer.taps import Seen
from pairs import randn


def correlation(a: list[float], b: list[float]) -> float:
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    covariance = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    return covariance / math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))


def loss(term: DIST, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return term(Seen(student, {}), term.target(Seen(teacher, {})), Batch(student, student))


@pytest.mark.parametrize(("beta", "gamma", "t"), [(2.0, 2.0, 4.0), (1.0, 0.0, 1.0), (0.0, 3.0, 2.0)])
def test_loss_is_the_formula(beta: float, gamma: float, t: float) -> None:
    student, teacher = 3 * randn(4, 6), 3 * randn(4, 6, seed=1)
    p, q = (logits.double().div(t).softmax(1) for logits in (student, teacher))
    inter = sum(1 - correlation(p[i].tolist(), q[i].tolist()) for i in range(4)) / 4
    intra = sum(1 - correlation(p[:, k].tolist(), q[:, k].tolist()) for k in range(6)) / 6
    found = loss(DIST(beta=beta, gamma=gamma, temperature=t), student, teacher)
    assert found.item() == pytest.approx(t**2 * (beta * inter + gamma * intra), rel=1e-4)


@given(st.integers(0, 1000), st.floats(0.01, 100), st.floats(-10, 10))
def test_scale_and_shift_of_a_row_do_not_matter(seed: int, a: float, b: float) -> None:
    one, other = randn(3, 6, seed=seed), randn(3, 6, seed=seed + 1)
    distance = pearson_distance(one, other).item()
    assert 0 <= distance <= 2
    assert pearson_distance(a * one + b, other).item() == pytest.approx(distance, abs=2e-3)
    assert pearson_distance(one.flip(1), other.flip(1)).item() == pytest.approx(distance, abs=1e-5)
    assert pearson_distance(one, a * one + b).item() == pytest.approx(0, abs=2e-3)
    assert pearson_distance(one, -one).item() == pytest.approx(2, abs=1e-5)


def test_constant_answers_and_a_batch_of_one_give_finite_gradients() -> None:
    for student in (torch.zeros(4, 5, requires_grad=True), torch.zeros(1, 5, requires_grad=True)):
        loss(DIST(), student, randn(*student.shape)).backward()
        assert student.grad is not None
        assert student.grad.isfinite().all()
