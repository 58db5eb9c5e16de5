import pytest
import torch
from torch import nn
from torch.nn import functional as F

from factor_transfer.data import Batch
from factor_transfer.methods import FitNets
from factor_transfer.taps import Seen
from pairs import distil, only_term, pair, randn

BATCH = Batch(torch.empty(2), torch.empty(2))


def test_loss_is_the_formula() -> None:
    regressor = nn.Conv2d(2, 3, 1)
    own, other = randn(2, 2, 3, 3), randn(2, 3, 3, 3, seed=1)
    term = FitNets([regressor], ["t"], ["s"])
    loss = term(Seen(None, {"s": own}), term.target(Seen(None, {"t": other})), BATCH)
    weight, bias = regressor.weight[:, :, 0, 0].double().tolist(), regressor.bias
    assert bias is not None
    total = 0.0
    for n in range(2):
        for o in range(3):
            for y in range(3):
                for x in range(3):
                    said = bias[o].item() + sum(weight[o][c] * own[n, c, y, x].item() for c in range(2))
                    total += (said - other[n, o, y, x].item()) ** 2
    assert loss.item() == pytest.approx(total / (2 * 3 * 3 * 3), rel=1e-4)


def test_several_taps_are_summed_and_the_order_of_samples_does_not_matter() -> None:
    term = FitNets([nn.Identity(), nn.Identity()], ["a", "b"], ["c", "d"])
    teacher = {"a": randn(4, 2, 3, 3), "b": randn(4, 2, 2, 2, seed=1)}
    student = {"c": randn(4, 2, 3, 3, seed=2), "d": randn(4, 2, 4, 4, seed=3)}
    loss = term(Seen(None, student), term.target(Seen(None, teacher)), BATCH)
    expected = F.mse_loss(student["c"], teacher["a"]) + F.mse_loss(F.avg_pool2d(student["d"], 2), teacher["b"])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    back = [{key: value.flip(0) for key, value in side.items()} for side in (student, teacher)]
    assert term(Seen(None, back[0]), term.target(Seen(None, back[1])), BATCH).item() == pytest.approx(loss.item())


@pytest.mark.parametrize("kind", ["wider", "deeper"])
def test_the_middle_stages_are_the_default(kind: str) -> None:
    both = pair(kind)
    term = only_term(distil("fitnets", both))
    assert (list(term.teacher_taps), list(term.student_taps)) == (["layer2"], ["layer2"])
    assert [tuple(one.weight.shape[:2]) for one in term.regressors] == [({"wider": 8, "deeper": 4}[kind], 4)]
