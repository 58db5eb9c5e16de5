"""Taps, connectors and networks that do not go together, and what Python code may write for one tap."""

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from factor_transfer import (
    CRD,
    OFD,
    AttentionTransfer,
    Distillation,
    FactorTransfer,
    FitNets,
    Pair,
    Paraphraser,
    ParaphraserTraining,
    ReviewKD,
    Side,
    SimKD,
    Term,
    Translator,
)
from factor_transfer.data import Batch
from factor_transfer.errors import InputError
from factor_transfer.methods import TERMS
from factor_transfer.methods.terms.ofd import negative_mean
from factor_transfer.methods.terms.reviewkd import Fusion
from factor_transfer.taps import Seen
from pairs import IMAGES, INDICES, LABELS, distil, losses, model, only_term, pair, randn, step


class Autoencoder(nn.Module):
    """An autoencoder that somebody has written without knowing this package."""

    def __init__(self) -> None:
        super().__init__()
        self.in_channels = 16
        self.encoder, self.decoder = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)

    def forward(self, feature: Tensor) -> Tensor:
        return cast("Tensor", self.decoder(self.encoder(feature)))


class Squared(Paraphraser):
    """A paraphraser with an ``encode`` of its own, and a layer that only this one uses."""

    def __init__(self) -> None:
        super().__init__(16)
        self.scale = nn.Conv2d(16, 16, 1)

    def encode(self, feature: Tensor) -> Tensor:
        return super().encode(self.scale(feature)).square()


def factor(paraphraser: Any, out_channels: int = 8) -> FactorTransfer:
    return FactorTransfer(paraphraser, Translator(8, out_channels), "layer3", "layer3")


def both_of(term: Term) -> Distillation:
    two = pair()
    return Distillation(two.student.model, two.teacher.model, {"term": term})


@pytest.mark.parametrize(
    "make",
    [
        lambda: AttentionTransfer("layer2", "layer2"),
        lambda: FitNets(nn.Conv2d(4, 8, 1), "layer2", "layer2"),
        lambda: FitNets(nn.Sequential(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8)), "layer2", "layer2"),
        lambda: OFD(nn.Conv2d(4, 8, 1), negative_mean(randn(2, 8, 4, 4)), "layer2", "layer2"),
        lambda: ReviewKD(Fusion(4, 4, 8, fuse=False), "layer2", "layer2", False),
        lambda: FactorTransfer(Paraphraser(8), Translator(4, 4), "layer2", "layer2"),
    ],
)
def test_a_text_is_one_tap(make: Callable[[], Term]) -> None:
    term = make()
    assert list(term.student_taps) == list(term.teacher_taps) == ["layer2"]
    assert losses(both_of(term))["loss_term"].isfinite()


def test_a_text_is_one_tap_of_a_side_and_of_between() -> None:
    side = Side(model(), "layer3", IMAGES)
    assert side.taps == ("layer3",)
    assert side.maps("layer3") == side.maps(["layer3"]) == [(16, 4, 4)]
    assert list(side.see("fc").features) == ["fc"]
    term = FitNets.between(Pair(side, side), teacher_taps="layer1", student_taps="layer2")  # type: ignore[arg-type]
    assert (term.teacher_taps, term.student_taps) == (["layer1"], ["layer2"])


@pytest.mark.parametrize(
    ("make", "numbers"),
    [
        (lambda: AttentionTransfer(["a", "b"], ["a"]), "2 taps of the teacher, 1 taps of the student"),
        (lambda: AttentionTransfer([], []), "0 taps of the teacher, 0 taps"),
        (lambda: FitNets([nn.Identity()], ["a", "b"], ["a", "b"]), "2 taps of the student, 1 regressors"),
        (lambda: OFD([nn.Identity()], [], ["a"], ["a"]), "1 taps of the student, 1 connectors, 0 margins"),
        (lambda: ReviewKD([], ["a"], ["a"], False), "1 taps of the student, 0 fusions"),
        (
            lambda: FactorTransfer(Paraphraser(4), Translator(4, 2), ["a", "b"], "a"),
            "2 taps of the teacher, 1 taps of the student",
        ),
        (lambda: FactorTransfer([], [], [], []), "0 paraphrasers, 0 translators, 0 weights"),
        (lambda: ParaphraserTraining(model(), ["layer1", "layer2"], Paraphraser(4)), "2 taps, 1 paraphrasers"),
    ],
)
def test_numbers_of_parts_that_differ_are_refused(make: Callable[[], object], numbers: str) -> None:
    with pytest.raises(InputError, match=f"needs one of each per tap, .*{numbers}"):
        make()


@pytest.mark.parametrize(
    ("tap", "shape"), [("layer2", r"\(6, 8, 8, 8\)"), ("fc", r"\(6, 4\)"), (["layer3", "layer2"], r"\(6, 8, 8, 8\)")]
)
def test_paraphrasers_of_other_features_are_refused(tap: str | list[str], shape: str) -> None:
    paraphrasers = [Paraphraser(16) for _ in ([tap] if isinstance(tap, str) else tap)]
    method = ParaphraserTraining(model(), tap, paraphrasers)
    with pytest.raises(InputError, match=f"paraphraser takes feature maps of 16 channels, but .*{shape}"):
        method(IMAGES)


def test_a_reconstruction_of_another_shape_is_refused() -> None:
    class Narrow(Paraphraser):
        def decode(self, factor: Tensor) -> Tensor:
            return super().decode(factor)[:, :1]

    with pytest.raises(InputError, match=r"\(6, 1, 4, 4\).*\(6, 16, 4, 4\)"):
        ParaphraserTraining(model(), "layer3", Narrow(16))(IMAGES)


def test_an_unknown_reconstruction_is_refused() -> None:
    with pytest.raises(InputError, match="unknown reconstruction 'l3'; did you mean 'l2' or 'l1'"):
        ParaphraserTraining(model(), "layer3", Paraphraser(16), reconstruction="l3")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("paraphraser", "kind"),
    [
        (Autoencoder(), "a Autoencoder"),
        ([Autoencoder()], "a Autoencoder"),
        (nn.Sequential(nn.Identity()), "a Sequential"),
        (Paraphraser, "the class Paraphraser"),
        (None, "a NoneType"),
        ("layer3", "a str"),
    ],
)
def test_other_autoencoders_are_refused(paraphraser: Any, kind: str) -> None:
    for make in (factor, lambda one: ParaphraserTraining(model(), "layer3", one)):
        with pytest.raises(InputError, match=f"a Paraphraser is needed, but got {kind}; .*subclass of Paraphraser"):
            make(paraphraser)


def test_an_own_encode_is_used_and_frozen() -> None:
    torch.manual_seed(0)
    paraphraser = Squared()
    term = factor(paraphraser)
    method = both_of(term).train()
    feature = randn(2, 16, 4, 4)
    (target,) = term.target(Seen(None, {"layer3": feature}))
    assert torch.equal(target, paraphraser.encode(feature))
    assert not target.requires_grad
    assert not paraphraser.scale.weight.requires_grad
    assert not paraphraser.training
    before = {key: value.clone() for key, value in paraphraser.state_dict().items()}
    step(method)
    assert all(torch.equal(value, before[key]) for key, value in paraphraser.state_dict().items())
    assert all(key.startswith("translators.0.") for key, one in term.named_parameters() if one.requires_grad)


def test_the_state_of_a_term_keeps_its_keys() -> None:
    layers = {f"{index}.{part}" for index in (0, 2, 4) for part in ("weight", "bias")}
    expected = {f"{module}.{layer}" for module in ("encoders.0.module", "translators.0.layers") for layer in layers}
    assert set(factor(Paraphraser(16)).state_dict()) == expected


def test_features_of_other_channels_are_refused_by_reviewkd_and_crd() -> None:
    with pytest.raises(InputError, match=r"fusion module takes .* 9 channels.*'layer2' .*\(6, 4, 8, 8\)"):
        losses(both_of(ReviewKD([Fusion(9, 4, 8, fuse=False)], ["layer2"], ["layer2"], False)))
    with pytest.raises(InputError, match=r"reviewkd needs feature maps .*'fc' returns shape \(6, 4\)"):
        losses(both_of(ReviewKD([Fusion(4, 4, 8, fuse=False)], ["fc"], ["layer2"], True)))
    with pytest.raises(InputError, match=r"crd takes features of 9 channels of the student.*'layer2'.*\(6, 4\)"):
        losses(both_of(CRD(9, 8, LABELS, "layer2", "layer2", negatives=4)))


@pytest.mark.parametrize("indices", [[0, 1, 2, 3, 4, 12], [-1, 0, 1, 2, 3, 4]])
@pytest.mark.parametrize("training", [True, False])
def test_indices_of_other_images_are_refused(indices: list[int], training: bool) -> None:
    method = distil("crd", pair()).train(training)
    with pytest.raises(InputError, match=f"12 training images.* from {min(indices)} to {max(indices)}"):
        method(IMAGES, LABELS[INDICES], torch.tensor(indices))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", sorted(set(TERMS) - {"factor"}))
def test_terms_can_be_converted_to_another_type(name: str, kind: torch.dtype) -> None:
    torch.manual_seed(0)
    method = distil(name, pair()).eval()
    expected = losses(method)[f"loss_{name}"].item()
    method.to(kind)
    found = method(IMAGES.to(kind), LABELS[INDICES], INDICES)[f"loss_{name}"].item()
    assert found == pytest.approx(expected, rel=0.1 if kind == torch.bfloat16 else 1e-4)
    method.train()
    for _ in range(2):
        one = method(IMAGES.to(kind), LABELS[INDICES], INDICES)
        one["loss"].backward()
        assert one["loss"].isfinite()


def test_simkd_says_which_student_it_needs() -> None:
    term = SimKD("layer3")
    with pytest.raises(InputError, match=r"SimKD\.adapt"):
        term.check_student(model())
    term.check_student(SimKD.adapt(pair()))
    only_term(distil("at", pair())).check_student(model())


def test_a_batch_without_images_has_no_index_out_of_range() -> None:
    term = only_term(distil("crd", pair())).eval()
    empty = torch.zeros(0, dtype=torch.int64)
    term(Seen(None, {"layer3": randn(0, 8, 4, 4)}), randn(0, 16), Batch(IMAGES[:0], empty, empty))
