import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from factor_transfer.methods import ReviewKD
from factor_transfer.methods.terms.reviewkd import Fusion, context_loss
from pairs import IMAGES, distil, losses, pair, randn


def naive_context(student: Tensor, teacher: Tensor) -> float:
    def error(a: Tensor, b: Tensor) -> float:
        pairs = list(zip(a.double().flatten().tolist(), b.double().flatten().tolist(), strict=True))
        return sum((x - y) ** 2 for x, y in pairs) / len(pairs)

    def pool(feature: Tensor, size: int) -> Tensor:
        step = feature.shape[2] // size
        blocks = [feature[:, :, y::step, x::step] for y in range(step) for x in range(step)]
        return torch.stack(blocks).mean(0)

    parts = [(1.0, error(student, teacher))]
    for size in (4, 2, 1):
        if size < student.shape[2]:
            parts.append((parts[-1][0] / 2, error(pool(student, size), pool(teacher, size))))
    return sum(weight * part for weight, part in parts) / sum(weight for weight, _ in parts)


@pytest.mark.parametrize("size", [8, 4, 2, 1])
def test_loss_is_the_formula(size: int) -> None:
    student, teacher = randn(2, 3, size, size), randn(2, 3, size, size, seed=1)
    assert context_loss(student, teacher).item() == pytest.approx(naive_context(student, teacher), rel=1e-4)


@given(st.integers(0, 1000), st.floats(-10, 10), st.floats(0.1, 10))
def test_a_shift_of_both_does_not_matter_and_scale_counts_squared(seed: int, shift: float, scale: float) -> None:
    student, teacher = randn(2, 3, 8, 6, seed=seed), randn(2, 3, 8, 6, seed=seed + 1)
    loss = context_loss(student, teacher).item()
    assert context_loss(student + shift, teacher + shift).item() == pytest.approx(loss, rel=1e-3)
    assert context_loss(scale * student, scale * teacher).item() == pytest.approx(scale**2 * loss, rel=1e-3)
    assert context_loss(student.flip(3), teacher.flip(3)).item() == pytest.approx(loss, rel=1e-3)


def test_a_fusion_weighs_both_by_attention() -> None:
    fusion = Fusion(2, 3, 5, fuse=True).eval()
    feature, deeper = randn(2, 2, 4, 4), randn(2, 3, 2, 2, seed=1)
    handed, said = fusion(feature, deeper, torch.Size((4, 4)))
    x = fusion.project(feature)
    y = torch.stack([torch.stack([deeper[:, :, i // 2, j // 2] for j in range(4)], 2) for i in range(4)], 2)
    assert fusion.attend is not None
    attention = fusion.attend(torch.cat([x, y], 1))
    expected = x * attention[:, 0:1] + y * attention[:, 1:2]
    assert torch.allclose(handed, expected, atol=1e-6)
    assert torch.allclose(said, fusion.review(expected), atol=1e-6)
    assert fusion(feature, deeper, torch.Size((3, 8)))[1].shape == (2, 5, 3, 8)


@pytest.mark.parametrize("kind", ["wider", "deeper"])
@pytest.mark.parametrize("pooled", [True, False])
def test_levels_go_from_the_deepest_to_the_shallowest(kind: str, pooled: bool) -> None:
    both = pair(kind)
    method = distil("reviewkd", both, pooled=pooled).eval()
    term = method.terms["reviewkd"]
    assert isinstance(term, ReviewKD)
    last = both.teacher.stages[-1]
    assert list(term.student_taps) == ["layer1", "layer2", "layer3", *["layer3"] * pooled]
    assert all(tap.endswith("relu:input") for tap in term.teacher_taps[:3])
    assert list(term.teacher_taps[3:]) == [last] * pooled
    _, own = both.student.see(term.student_taps)
    _, other = both.teacher.see(term.teacher_taps)
    expected, handed = 0.0, None
    for level in reversed(range(3 + pooled)):
        feature, wanted = own[term.student_taps[level]], other[term.teacher_taps[level]]
        if level == 3:
            feature, wanted = (x.mean((2, 3), keepdim=True) for x in (feature, wanted))
        fusion = term.fusions[level]
        assert isinstance(fusion, Fusion)
        assert (fusion.attend is None) == (level == 2 + pooled)
        handed, said = fusion(feature, handed, wanted.shape[2:])
        assert said.shape == wanted.shape
        expected += context_loss(said, wanted).item()
    method.begin_epoch(19)
    assert losses(method)["loss_reviewkd"].item() == pytest.approx(expected, rel=1e-4)
    method.begin_epoch(0)
    assert losses(method)["loss_reviewkd"].item() == pytest.approx(expected / 20, rel=1e-4)


def test_oblong_images_work() -> None:
    method = distil("reviewkd", pair("deeper"))
    oblong = F.interpolate(IMAGES, (16, 8))
    assert method(oblong, torch.zeros(6, dtype=torch.int64))["loss"].isfinite()
