import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from factor_transfer.data import Batch
from factor_transfer.errors import InputError
from factor_transfer.methods import CRD
from factor_transfer.taps import Seen
from pairs import IMAGES, INDICES, LABELS, distil, make_pair, model, only_term, pair, randn, step


def term(negatives: int = 5, **settings: Any) -> CRD:
    torch.manual_seed(0)
    return CRD(3, 6, LABELS, "t", "s", dimension=4, negatives=negatives, **settings)


def say(one: CRD, seed: int = 0, indices: Tensor | None = INDICES) -> Tensor:
    student, teacher = randn(6, 3, 2, 2, seed=seed), randn(6, 6, 2, 2, seed=seed + 1)
    target = one.target(Seen(None, {"t": teacher}))
    labels = LABELS[INDICES]
    return one(Seen(None, {"s": student}), target, Batch(IMAGES, labels, indices))


def naive_loss(one: CRD, drawn: Tensor, z: dict[str, float]) -> float:
    """The published way: a row of the memory for the image and each of its negatives, product by product."""
    features = {"student": randn(6, 3, 2, 2).mean((2, 3)), "teacher": randn(6, 6, 2, 2, seed=1).mean((2, 3))}
    total = 0.0
    for side, other in (("student", "teacher"), ("teacher", "student")):
        anchors = F.normalize(one.embed[side](features[side]).double(), dim=1)
        memory = one.get_buffer(f"memory_{other}").double()
        rows = memory[torch.cat([INDICES[:, None], drawn], 1)]  # (B, 1 + K, d)
        p = torch.einsum("bkd,bd->bk", rows, anchors).div(one.temperature).exp()
        p = p / z.setdefault(side, p.mean().item() * len(memory))
        noise = drawn.shape[1] / len(memory)
        for row in p.tolist():
            total -= math.log(row[0] / (row[0] + noise))
            total -= sum(math.log(noise / (value + noise)) for value in row[1:])
    return total / len(INDICES)


@pytest.mark.parametrize("negatives", [5, 9, 40])
def test_loss_is_that_of_the_naive_gather(negatives: int, monkeypatch: pytest.MonkeyPatch) -> None:
    one = term(negatives)
    drawn = one.draw(INDICES)
    monkeypatch.setattr(one, "draw", lambda indices: drawn)
    z: dict[str, float] = {}
    expected = naive_loss(one, drawn, z)
    assert say(one).item() == pytest.approx(expected, rel=1e-4)
    for side, value in z.items():
        assert one.get_buffer(f"z_{side}").item() == pytest.approx(value, rel=1e-5)
    # The second time memories have moved, and Z has not.
    expected = naive_loss(one, drawn, z)
    assert say(one).item() == pytest.approx(expected, rel=1e-4)
    for side, value in z.items():
        assert one.get_buffer(f"z_{side}").item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("negatives", [1, 9, 10, 200])
def test_negatives_are_of_other_classes_and_distinct_where_there_are_enough(negatives: int) -> None:
    one = term(negatives)
    assert one.replacement == (negatives > 9)
    drawn = one.draw(INDICES)
    assert drawn.shape == (6, negatives)
    assert (LABELS[drawn] != LABELS[INDICES][:, None]).all()
    for row in drawn.tolist():
        assert len(set(row)) == (negatives if negatives <= 9 else len(set(row)))
    if negatives == 200:  # all of them come
        assert all(len(set(row)) == 9 for row in drawn.tolist())


def test_draws_are_even() -> None:
    for negatives in (4, 12):
        one = term(negatives)
        counts = torch.zeros(len(LABELS))
        for _ in range(600):
            counts += torch.bincount(one.draw(INDICES[:1])[0], minlength=len(LABELS))
        others = counts[LABELS[INDICES[0]] != LABELS]
        assert others.sum() == 600 * negatives
        assert (others / others.mean() - 1).abs().max() < 0.25


def test_memories_move_towards_the_seen_embeddings() -> None:
    one = term(momentum=0.25)
    before = {side: one.get_buffer(f"memory_{side}").clone() for side in ("student", "teacher")}
    seen = F.normalize(one.embed["student"](randn(6, 3, 2, 2).mean((2, 3))), dim=1).detach()
    say(one).backward()  # which needs the memory that was
    expected = F.normalize(0.25 * before["student"][INDICES] + 0.75 * seen, dim=1)
    memory = one.get_buffer("memory_student")
    assert torch.allclose(memory[INDICES], expected, atol=1e-6)
    others = [index for index in range(len(LABELS)) if index not in INDICES]
    assert torch.equal(memory[others], before["student"][others])
    assert not torch.equal(one.get_buffer("memory_teacher")[INDICES], before["teacher"][INDICES])
    assert not memory.requires_grad


def test_in_evaluation_mode_the_loss_is_the_mean_over_draws() -> None:
    one = term(4)
    say(one)
    one.eval()
    exact = say(one).item()
    found = []
    for _ in range(300):
        again = term(4)
        again.load_state_dict(one.state_dict())
        found.append(say(again.train()).item())
    assert exact == pytest.approx(sum(found) / len(found), rel=0.02)


def test_the_scale_of_features_behind_the_embedding_does_not_matter() -> None:
    one = term().eval()
    loss = say(one).item()
    with torch.no_grad():
        for parameter in one.embed.parameters():
            parameter.mul_(7)
    assert say(one).item() == pytest.approx(loss, rel=1e-4)


def test_the_teachers_embedding_is_trained_and_vectors_do_too() -> None:
    method = distil("crd", pair(), student_tap="fc", teacher_tap="layer2")
    embed = only_term(method).embed["teacher"]
    before = embed.weight.clone()
    step(method)
    assert not torch.equal(before, embed.weight)


def test_the_state_has_memories_but_nothing_derived_from_labels() -> None:
    keys = set(term().state_dict())
    embeds = {f"embed.{side}.{part}" for side in ("student", "teacher") for part in ("weight", "bias")}
    assert keys == embeds | {f"{kind}_{side}" for kind in ("memory", "z") for side in ("student", "teacher")}


def test_missing_requirements_are_reported() -> None:
    with pytest.raises(InputError, match=r"indices, int64 \(B,\)"):
        say(term(), indices=None)
    with pytest.raises(InputError, match="labels of all training images"):
        distil("crd", make_pair(model(), model(), labels=None))
    with pytest.raises(InputError, match="same class"):
        distil("crd", make_pair(model(), model(), labels=torch.zeros(5, dtype=torch.int64)))
    assert term().weight == 0.8
