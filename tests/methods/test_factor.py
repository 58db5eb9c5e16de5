import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from factor_transfer import (
    FactorTransfer,
    Pair,
    Paraphraser,
    ParaphraserTraining,
    Side,
    Translator,
    build_model,
    factor_loss,
)
from factor_transfer.data import Batch
from factor_transfer.errors import InputError
from factor_transfer.taps import Seen, Taps


def naive_factor_loss(student: Tensor, teacher: Tensor, p: float) -> float:
    """The formula, sample by sample and element by element."""
    total, count = 0.0, 0
    for one, other in zip(student.double(), teacher.double(), strict=True):
        a, b = one.flatten().tolist(), other.flatten().tolist()
        norm_a, norm_b = math.sqrt(sum(x * x for x in a)), math.sqrt(sum(x * x for x in b))
        for x, y in zip(a, b, strict=True):
            total += abs(x / norm_a - y / norm_b) ** p
            count += 1
    return total / count


def factors(seed: int = 0, shape: tuple[int, ...] = (3, 4, 5, 2)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
def test_loss_is_the_formula(p: float) -> None:
    student, teacher = factors()
    assert factor_loss(student, teacher, p).item() == pytest.approx(naive_factor_loss(student, teacher, p), rel=1e-5)


@given(st.integers(0, 1000), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_loss_does_not_depend_on_scale_or_order(seed: int, a: float, b: float) -> None:
    student, teacher = factors(seed)
    loss = factor_loss(student, teacher).item()
    assert factor_loss(a * student, b * teacher).item() == pytest.approx(loss, rel=1e-4)
    assert factor_loss(student.flip(0), teacher.flip(0)).item() == pytest.approx(loss, rel=1e-5)
    assert factor_loss(teacher, student).item() == pytest.approx(loss, rel=1e-5)


@given(st.integers(0, 1000), st.integers(1, 40))
def test_the_loss_has_its_documented_bounds(seed: int, elements: int) -> None:
    student, teacher = factors(seed, (2, elements))
    assert factor_loss(student.abs(), teacher.abs()).item() <= math.sqrt(2 / elements) + 1e-6
    assert factor_loss(student, teacher).item() <= 2 / math.sqrt(elements) + 1e-6
    assert factor_loss(student, student).item() == 0


def test_an_all_zero_factor_gives_no_nan_and_no_infinite_gradient() -> None:
    student, teacher = factors()
    student[0], teacher[1] = 0, 0
    student.requires_grad_()
    loss = factor_loss(student, teacher)
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() < 1
    # It counts as the zero vector it is, and learns nothing from a direction that it has not.
    elements = student[0].numel()
    unit = student[2] / student[2].norm() - teacher[2] / teacher[2].norm()
    rows = [
        (teacher[0] / teacher[0].norm()).abs().sum(),
        (student[1] / student[1].norm()).abs().sum(),
        unit.abs().sum(),
    ]
    assert loss.item() == pytest.approx(sum(row.item() for row in rows) / (3 * elements), rel=1e-5)
    assert not student.grad[0].any()
    assert student.grad[1].any()


def test_bfloat16_factors_are_compared_in_float32() -> None:
    student, teacher = factors(shape=(2, 4096))
    loss = factor_loss(student.bfloat16(), teacher.bfloat16())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(factor_loss(student, teacher).item(), rel=0.01)


def test_shapes_that_differ_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"\(2, 4, 3, 3\).*\(2, 5, 3, 3\)"):
        factor_loss(torch.ones(2, 4, 3, 3), torch.ones(2, 5, 3, 3))


@pytest.mark.parametrize("batch_norm", [False, True])
def test_connectors_have_the_published_layers(batch_norm: bool) -> None:
    paraphraser, translator = Paraphraser(8, batch_norm=batch_norm), Translator(6, 4, batch_norm=batch_norm)

    def layers(stack: nn.Sequential, kind: type[nn.Module]) -> list[tuple[int, int]]:
        found = [m for m in stack if isinstance(m, kind)]
        return [(m.in_channels, m.out_channels) for m in found]  # type: ignore[misc]

    assert layers(paraphraser.encoder, nn.Conv2d) == [(8, 8), (8, 4), (4, 4)]
    assert layers(paraphraser.decoder, nn.ConvTranspose2d) == [(4, 4), (4, 8), (8, 8)]
    assert layers(translator.layers, nn.Conv2d) == [(6, 6), (6, 4), (4, 4)]
    for stack in (paraphraser.encoder, paraphraser.decoder, translator.layers):
        kinds = [type(module).__name__.replace("Transpose", "") for module in stack]
        assert kinds == (["Conv2d", "BatchNorm2d", "LeakyReLU"] if batch_norm else ["Conv2d", "LeakyReLU"]) * 3
        assert all(m.negative_slope == 0.1 for m in stack if isinstance(m, nn.LeakyReLU))
        assert all(m.bias is not None for m in stack if isinstance(m, nn.Conv2d | nn.ConvTranspose2d))


def test_shapes_of_paraphraser_and_translator() -> None:
    paraphraser, feature = Paraphraser(10, rate=0.25), torch.randn(2, 10, 5, 3)
    assert paraphraser.encode(feature).shape == (2, 2, 5, 3)
    assert paraphraser(feature).shape == feature.shape
    assert torch.equal(paraphraser(feature), paraphraser.decode(paraphraser.encode(feature)))
    assert Translator(3, 2)(torch.randn(2, 3, 5, 3)).shape == (2, 2, 5, 3)


def test_weights_carry_over_layer_by_layer() -> None:
    """A plain re-implementation, layer by layer, given the same weights in the same order, computes the same."""
    paraphraser, feature = Paraphraser(6), torch.randn(2, 6, 4, 4)
    x = feature
    for weight, bias in zip(*[iter(paraphraser.encoder.parameters())] * 2, strict=True):
        x = nn.functional.leaky_relu(nn.functional.conv2d(x, weight, bias, padding=1), 0.1)
    for weight, bias in zip(*[iter(paraphraser.decoder.parameters())] * 2, strict=True):
        x = nn.functional.leaky_relu(nn.functional.conv_transpose2d(x, weight, bias, padding=1), 0.1)
    assert torch.allclose(x, paraphraser(feature), atol=1e-6)


@pytest.mark.parametrize("rate", [0.0, 0.01, -1.0, math.nan, math.inf])
def test_a_rate_that_leaves_no_channel_is_refused(rate: float) -> None:
    with pytest.raises(InputError, match="rate"):
        Paraphraser(8, rate=rate)


def test_paraphraser_training_is_l1_of_the_feature_without_labels() -> None:
    teacher, paraphraser = build_model("resnet8", 3, width=2), Paraphraser(8)
    images = torch.randn(4, 3, 8, 8)
    method = ParaphraserTraining(teacher, "layer3", paraphraser)
    losses = method(images, torch.tensor([0, 1, 2, 0]))
    feature: dict[str, Tensor] = {}
    teacher.layer3.register_forward_hook(lambda module, args, output: feature.update(x=output))  # type: ignore[union-attr]
    teacher.eval()(images)
    expected = (paraphraser(feature["x"]) - feature["x"]).abs().mean()
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    relative = expected / feature["x"].abs().mean()
    assert losses["relative_error"].item() == pytest.approx(relative.item(), rel=1e-5)
    assert method(images)["loss"].item() == losses["loss"].item()
    losses["loss"].backward()
    assert all(parameter.grad is not None for parameter in paraphraser.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_without_a_paraphraser_the_factor_is_the_feature() -> None:
    torch.manual_seed(0)
    teacher, student = build_model("resnet8", 10, width=4).eval(), build_model("resnet8", 10, width=2)
    images = torch.randn(3, 3, 16, 16)
    paraphrasers = {"layer3": Paraphraser(16, rate=0.25)}
    pair = Pair(Side(teacher, ["layer3"], images), Side(student, ["layer3"], images), paraphrasers)
    term = FactorTransfer.between(pair, paraphrase=False, beta=1.0)
    theirs, own = (Taps(model, ["layer3"])(images).features for model in (teacher, student))
    (target,) = term.target(Seen(None, theirs))
    assert torch.equal(target, theirs["layer3"])
    translated = term.translators[0](own["layer3"])
    assert translated.shape == target.shape
    distance = term(Seen(None, own), (target,), Batch(images, torch.zeros(3, dtype=torch.long))).item()
    assert distance == pytest.approx(naive_factor_loss(translated, target, 1), rel=1e-5)
