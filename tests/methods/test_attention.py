import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from factor_transfer.errors import InputError
from factor_transfer.methods import attention_loss
from pairs import distil, losses, only_term, pair, randn


def naive_attention(student: Tensor, teacher: Tensor) -> float:
    def unit(feature: list[list[list[float]]]) -> list[float]:
        channels, height, width = len(feature), len(feature[0]), len(feature[0][0])
        energy = [
            sum(feature[c][y][x] ** 2 for c in range(channels)) / channels for y in range(height) for x in range(width)
        ]
        length = math.sqrt(sum(value**2 for value in energy))
        return [value / length for value in energy]

    total, count = 0.0, 0
    for own, other in zip(student.double().tolist(), teacher.double().tolist(), strict=True):
        for a, b in zip(unit(own), unit(other), strict=True):
            total, count = total + (a - b) ** 2, count + 1
    return total / count


def test_loss_is_the_formula() -> None:
    student, teacher = randn(3, 4, 5, 2), randn(3, 6, 5, 2, seed=1)
    assert attention_loss(student, teacher).item() == pytest.approx(naive_attention(student, teacher), rel=1e-4)


@given(st.integers(0, 1000), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_scale_sign_and_the_order_of_channels_do_not_matter(seed: int, a: float, b: float) -> None:
    student, teacher = randn(2, 3, 4, 4, seed=seed), randn(2, 3, 4, 4, seed=seed + 1)
    loss = attention_loss(student, teacher).item()
    assert attention_loss(a * student, -b * teacher).item() == pytest.approx(loss, rel=1e-3)
    assert attention_loss(student.flip(1), teacher).item() == pytest.approx(loss, rel=1e-4)
    assert attention_loss(student, student.flip(1)).item() == pytest.approx(0, abs=1e-9)


def test_the_energy_of_the_larger_map_is_pooled() -> None:
    student, teacher = randn(2, 3, 8, 8), randn(2, 5, 4, 4, seed=1)
    pooled = F.avg_pool2d(student.pow(2).mean(1, keepdim=True), 2)
    # One channel whose square is that energy.
    expected = attention_loss(pooled.sqrt(), teacher)
    assert attention_loss(student, teacher).item() == pytest.approx(expected.item(), rel=1e-4)


def test_zero_features_give_finite_gradients() -> None:
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    attention_loss(student, randn(2, 3, 4, 4)).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_a_vector_is_refused() -> None:
    with pytest.raises(InputError, match=r"feature map .* has shape \(2, 3\)"):
        attention_loss(randn(2, 3), randn(2, 3, 4, 4))


@pytest.mark.parametrize("kind", ["wider", "deeper"])
def test_the_stages_are_paired_from_the_last_and_summed(kind: str) -> None:
    both = pair(kind)
    method = distil("at", both).eval()
    term = only_term(method)
    assert list(term.student_taps) == ["layer1", "layer2", "layer3"]
    assert list(term.teacher_taps) == both.teacher.stages[-3:]
    _, own = both.student.see(term.student_taps)
    _, other = both.teacher.see(term.teacher_taps)
    distances = [attention_loss(own[a], other[b]) for a, b in zip(own, other, strict=True)]
    assert losses(method)["loss_at"].item() == pytest.approx(1000 * sum(d.item() for d in distances), rel=1e-5)
