import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from factor_transfer.methods import OFD
from factor_transfer.methods.terms.ofd import negative_mean, partial_distance
from pairs import distil, losses, pair, randn


def naive_distance(student: Tensor, teacher: Tensor, margin: list[float]) -> float:
    total = 0.0
    for own, other in zip(student.double().tolist(), teacher.double().tolist(), strict=True):
        for s_map, t_map, m in zip(own, other, margin, strict=True):
            for s_row, t_row in zip(s_map, t_map, strict=True):
                for s, t in zip(s_row, t_row, strict=True):
                    wanted = max(t, m)
                    total += 0 if s <= wanted <= 0 else (wanted - s) ** 2
    return total / len(student)


def test_distance_is_the_formula() -> None:
    student, teacher = randn(3, 4, 2, 5), randn(3, 4, 2, 5, seed=1)
    margin = torch.tensor([-0.1, -0.5, 0.0, -2.0])
    expected = naive_distance(student, teacher, margin.tolist())
    assert partial_distance(student, teacher, margin).item() == pytest.approx(expected, rel=1e-5)


def test_margin_is_the_mean_of_negative_responses() -> None:
    feature = randn(3, 4, 2, 5)
    feature[:, 2] = feature[:, 2].abs()
    for channel, margin in enumerate(negative_mean(feature).tolist()):
        negative = [value for value in feature[:, channel].flatten().tolist() if value < 0]
        assert margin == pytest.approx(sum(negative) / len(negative) if negative else 0, rel=1e-5)


@given(st.integers(0, 1000), st.floats(0.01, 100))
def test_distance_is_squared_and_ignores_values_below_the_margin(seed: int, a: float) -> None:
    student, teacher = randn(2, 3, 4, 4, seed=seed), randn(2, 3, 4, 4, seed=seed + 1)
    margin = torch.tensor([-0.3, -0.6, -0.9])
    loss = partial_distance(student, teacher, margin).item()
    assert partial_distance(a * student, a * teacher, a * margin).item() == pytest.approx(a**2 * loss, rel=1e-3)
    lower = torch.where(teacher < margin[:, None, None], teacher - a, teacher)
    assert partial_distance(student, lower, margin).item() == pytest.approx(loss, rel=1e-5)
    assert partial_distance(teacher.maximum(margin[:, None, None]), teacher, margin).item() == 0


@pytest.mark.parametrize("kind", ["wider", "deeper"])
def test_taps_are_before_the_last_activation_and_stages_weigh_twice_the_one_before(kind: str) -> None:
    both = pair(kind)
    method = distil("ofd", both, weight=1.0).eval()
    term = method.terms["ofd"]
    assert isinstance(term, OFD)
    assert list(term.student_taps) == [f"layer{n}.0.relu:input" for n in (1, 2, 3)]
    _, own = both.student.see(term.student_taps)
    _, other = both.teacher.see(term.teacher_taps)
    assert all((feature < 0).any() for feature in [*own.values(), *other.values()])
    expected = 0.0
    for weight, connect, a, b in zip((0.25, 0.5, 1), term.connectors, own, other, strict=True):
        said = connect.eval()(F.adaptive_avg_pool2d(own[a], min(own[a].shape[2], other[b].shape[2])))
        pooled = F.adaptive_avg_pool2d(other[b], said.shape[2:])
        expected += weight * partial_distance(said, pooled, negative_mean(other[b])).item()
    assert losses(method)["loss_ofd"].item() == pytest.approx(expected, rel=1e-4)


def test_the_tap_is_the_input_of_the_stages_last_activation() -> None:
    both = pair()
    tap = "layer3.0.relu:input"
    _, features = both.teacher.see(["layer3", tap])
    assert torch.equal(features["layer3"], F.relu(features[tap]))
