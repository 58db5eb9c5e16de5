"""Arguments that Python code passes to terms, connectors and losses, and that a recipe would refuse."""

import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pytest
import torch
from annotated_types import Ge, Gt, Interval
from torch import nn

from factor_transfer import (
    CRD,
    DIST,
    DKD,
    KD,
    OFD,
    AttentionTransfer,
    FactorTransfer,
    FitNets,
    Paraphraser,
    ReviewKD,
    SimKD,
    Term,
    Translator,
    dkd_loss,
    factor_loss,
    kd_loss,
)
from factor_transfer.errors import InputError
from factor_transfer.methods import TERMS, configured
from factor_transfer.methods.terms.simkd import Projector
from factor_transfer.settings import options, settings
from pairs import LABELS, pair, randn

if TYPE_CHECKING:
    from decimal import Decimal


def factor(**settings: Any) -> FactorTransfer:
    return FactorTransfer(Paraphraser(4), Translator(4, 2), "a", "b", **settings)


def crd(**settings: Any) -> CRD:
    return CRD(4, 4, LABELS, "a", "b", **settings)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: KD(alpha=3), "KD: alpha must be at most 1, got 3"),
        (lambda: KD(alpha=-0.5), "KD: alpha must be at least 0, got -0.5"),
        (lambda: KD(alpha=math.nan), "KD: alpha must be a finite number, got nan"),
        (lambda: KD(temperature=0), "KD: temperature must be above 0, got 0"),
        (lambda: KD(temperature=math.inf), "KD: temperature must be a finite number, got inf"),
        (lambda: KD(temperature="4"), "KD: temperature must be a number, got '4'"),  # type: ignore[arg-type]
        (lambda: KD(temperature=True), "KD: temperature must be a number, got True"),
        (lambda: DIST(beta=-1), "DIST: beta must be at least 0, got -1"),
        (lambda: DKD(warmup_epochs=-1), "DKD: warmup_epochs must be at least 0, got -1"),
        (lambda: AttentionTransfer(["a"], ["b"], weight=-1), "AttentionTransfer: weight must be at least 0, got -1"),
        (lambda: FitNets([nn.Identity()], ["a"], ["b"], weight=-1), "FitNets: weight must be at least 0"),
        (lambda: OFD([nn.Identity()], [torch.zeros(1)], ["a"], ["b"], weight=-1), "OFD: weight must be at least 0"),
        (lambda: ReviewKD([], [], [], False, warmup_epochs=-1), "ReviewKD: warmup_epochs must be at least 0"),
        (lambda: SimKD("a", weight=math.nan), "SimKD: weight must be a finite number"),
        (lambda: SimKD.adapt(pair(), reduction=0), "SimKD: reduction must be at least 1, got 0"),
        (lambda: Projector(4, 4, 0), "Projector: reduction must be at least 1, got 0"),
        (lambda: factor(tap_weights=[-1]), "FactorTransfer: tap_weights[0] must be at least 0, got -1"),
        (lambda: factor(tap_weights=(1, math.inf)), "FactorTransfer: tap_weights[1] must be a finite number"),
        (lambda: factor(tap_weights="1"), "FactorTransfer: tap_weights must be a sequence of values, not a string"),
        (lambda: factor(beta=-1), "FactorTransfer: beta must be at least 0, got -1"),
        (lambda: factor(p=0.5), "FactorTransfer: p must be at least 1, got 0.5"),
        (lambda: crd(temperature=0), "CRD: temperature must be above 0, got 0"),
        (lambda: crd(momentum=1), "CRD: momentum must be below 1, got 1"),
        (lambda: crd(dimension=2.5), "CRD: dimension must be an integer, got 2.5"),
        (lambda: CRD(0, 4, LABELS, "a", "b"), "CRD: student_channels must be at least 1, got 0"),
        (lambda: Paraphraser(16, rate=100), "Paraphraser: rate must be at most 16, got 100"),
        (lambda: Paraphraser(0), "Paraphraser: in_channels must be at least 1, got 0"),
        (lambda: Translator(4, out_channels=0), "Translator: out_channels must be at least 1, got 0"),
        (lambda: kd_loss(randn(2, 3), randn(2, 3), 0), "kd_loss: temperature must be above 0, got 0"),
        (lambda: kd_loss(randn(2, 3), randn(2, 3), temperature=math.nan), "kd_loss: temperature must be a finite"),
        (lambda: dkd_loss(randn(2, 3), randn(2, 3), LABELS[:2], -1, 1, 1), "dkd_loss: alpha must be at least 0"),
        (lambda: factor_loss(randn(2, 3), randn(2, 3), p=0), "factor_loss: p must be at least 1, got 0"),
    ],
)
def test_arguments_outside_their_range_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError) as error:
        call()
    assert str(error.value).startswith(message)


def test_every_setting_with_a_range_is_checked_in_python_as_in_a_recipe() -> None:
    """Also a setting that is added later: what a recipe refuses, the term refuses."""
    for name, term in TERMS.items():
        kind = options(name, *configured(term))
        for function in configured(term):
            for key in settings(function):
                try:
                    kind.model_validate({key: -1})
                except ValueError as error:
                    if "greater than" in str(error):
                        arguments = dict.fromkeys(_needed(function), 1) | {key: -1}
                        with pytest.raises(InputError, match=rf"{term.__name__}: {key} must be .*, got -1"):
                            function(**arguments)


def _needed(function: Callable[..., Any]) -> list[str]:
    """The names of the arguments that have no default."""
    found = inspect.signature(function).parameters.values()
    return [one.name for one in found if one.default is one.empty and one.kind is not one.VAR_KEYWORD]


class Own(Term):
    """A term as a user writes it: with names for type checkers alone, and other ways to state a range."""

    def __init__(
        self,
        scale: "Decimal | None" = None,
        *,
        sharpness: Annotated[float, Gt(0)] = 1.0,
        share: "Annotated[float, Interval(ge=0, lt=1)]" = 0.5,
        levels: "Annotated[int, 'a comment', Ge(1)] | None" = None,
        **others: int,
    ) -> None:
        super().__init__()
        self.sharpness, self.share, self.levels = sharpness, share, levels


class Narrower(Own):
    """A subclass of that term."""


def test_terms_of_users_are_checked() -> None:
    for settings_, message in [
        ({"sharpness": 0}, "sharpness must be above 0, got 0"),
        ({"share": 1}, "share must be below 1, got 1"),
        ({"levels": 0}, "levels must be at least 1, got 0"),
    ]:
        for kind in (Own, Narrower):
            with pytest.raises(InputError, match=f"^{kind.__name__}: {message}$"):
                kind(**settings_)  # type: ignore[arg-type]
    assert Own(None, share=0, levels=2, more=3).levels == 2
    assert list(inspect.signature(Own).parameters) == ["scale", "sharpness", "share", "levels", "others"]


def test_integers_and_numbers_of_numpy_are_accepted() -> None:
    assert KD(alpha=1, temperature=np.float32(2)).weight == 1  # type: ignore[arg-type]
    assert Paraphraser(np.int64(16)).factor_channels == 8  # type: ignore[arg-type]
    assert factor(tap_weights=(2,), beta=0).weight == 0


def test_a_temperature_that_is_a_tensor_may_be_learned() -> None:
    temperature = torch.tensor(4.0, requires_grad=True)
    kd_loss(randn(2, 3), randn(2, 3, seed=1), temperature).backward()  # type: ignore[arg-type]
    assert temperature.grad is not None


def test_losses_are_compiled_and_exported_as_one_graph() -> None:
    class Loss(nn.Module):
        def forward(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
            return kd_loss(student, teacher, 4.0) + factor_loss(student, teacher, p=2)

    student, teacher = randn(2, 3), randn(2, 3, seed=1)
    expected = Loss()(student, teacher)
    compiled = torch.compile(Loss(), backend="eager", fullgraph=True)
    assert compiled(student, teacher) == expected
    assert torch.export.export(Loss(), (student, teacher)).module()(student, teacher) == expected
