"""Factor Transfer (Kim, Park, Kwak: Paraphrasing Complex Network, NeurIPS 2018; arXiv 1802.04977).

In stage 3 the student's translated feature follows the teacher's factor. The connectors are in ``methods/paraphraser``.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

import torch
from annotated_types import Ge
from torch import Tensor, nn

from factor_transfer.data import Batch
from factor_transfer.errors import InputError
from factor_transfer.methods.base import Frozen
from factor_transfer.methods.paraphraser import Paraphraser, Translator, Unchanged, as_paraphrasers, unit
from factor_transfer.methods.ranges import within_ranges
from factor_transfer.methods.shapes import check_channels
from factor_transfer.methods.term import Pair, Target, Term, as_modules, match
from factor_transfer.taps.extract import Seen


@within_ranges
def factor_loss(student_factor: Tensor, teacher_factor: Tensor, p: Annotated[float, Ge(1)] = 1) -> Tensor:
    """The mean of ``|F_T / ‖F_T‖ - F_S / ‖F_S‖|^p``, the distance between two normalised factors (paper, equation 4).

    It does not depend on the scale of either factor. The mean is over samples and elements, as in the authors' code,
    and no p-th root is taken. With p = 1 it is at most 2 / √D, and at most √(2 / D) if the factors are not negatively
    correlated, where D = z * H * W. The same weight is therefore weaker for factors with more elements.

    Example:
        >>> import torch
        >>> from factor_transfer import factor_loss
        >>> teacher_factor = torch.randn(2, 32, 8, 8)
        >>> factor_loss(2 * teacher_factor, teacher_factor)  # the scale does not matter
        tensor(0.)

    Args:
        student_factor: the student's factor (B, ...). It receives the gradient.
        teacher_factor: the teacher's factor, of the same shape.
        p: the exponent, at least 1. The paper's experiments use 1.

    Returns:
        The loss, float32, 0-d.

    Raises:
        InputError: if the shapes differ, or ``p`` is below 1.
    """
    if student_factor.dim() < 2:
        raise InputError(
            f"factor_loss needs factors (B, ...), but the student's has shape {tuple(student_factor.shape)}"
        )
    if student_factor.shape != teacher_factor.shape:
        raise InputError(
            f"the student's factor has shape {tuple(student_factor.shape)} and the teacher's "
            f"{tuple(teacher_factor.shape)}; they must be the same. factor_transfer.match pools the larger of two "
            "feature maps to the height and width of the smaller; a translator sets the number of channels"
        )
    return (unit(student_factor) - unit(teacher_factor)).abs().pow(p).mean()


class _Encoding(nn.Module):
    """The ``encode`` of a paraphraser that has its own, as a module."""

    def __init__(self, paraphraser: Paraphraser) -> None:
        super().__init__()
        self.paraphraser = paraphraser

    def forward(self, feature: Tensor) -> Tensor:
        return self.paraphraser.encode(feature)


def _encoder(paraphraser: Paraphraser) -> nn.Module:
    # The encoder alone if it is all that ``encode`` uses, so that a term does not hold the decoder.
    return paraphraser.encoder if type(paraphraser).encode is Paraphraser.encode else _Encoding(paraphraser)


class FactorTransfer(Term):
    """The term of stage 3: ``beta * factor_loss(translator(x_S), paraphraser.encode(x_T))`` (paper, equation 2).

    If the factors differ in height or width, the larger is average-pooled to the smaller, see ``match``.

    Example:
        >>> import torch
        >>> from factor_transfer import Distillation, FactorTransfer, Paraphraser, Translator, build_model
        >>> teacher, student = build_model("resnet20", 10), build_model("resnet8", 10)
        >>> paraphraser = Paraphraser(64, rate=0.5)  # to be trained first, see ParaphraserTraining
        >>> factor = FactorTransfer(paraphraser, Translator(64, 32), "layer3", "layer3", beta=500)
        >>> losses = Distillation(student, teacher, {"factor": factor})(torch.randn(2, 3, 32, 32), torch.tensor([3, 7]))
        >>> sorted(losses)
        ['accuracy', 'loss', 'loss_ce', 'loss_factor']

    Args:
        paraphraser: the trained paraphraser, whose ``encode`` is used, frozen; or a sequence with one per tap.
        translator: the translator, trained together with the student and not part of the deployed network; or a
            sequence with one per tap.
        teacher_tap: the tap of the teacher's feature that the paraphraser was trained on; or a sequence of taps.
        student_tap: the tap of the student's feature that is translated; or a sequence of taps.
        beta: the weight of the loss. The authors use 500 for ResNet-56 on CIFAR-10, where D = 2,048 (see
            ``factor_loss``).
        p: the exponent of the distance, at least 1.
        tap_weights: the weight of each tap, multiplied by ``beta``. 1 for each tap if left out.
        attention: whether to compare the factors' spatial attention, ``mean_z(F²)``, instead of the factors, as
            RepDistiller does. The paper compares the factors.

    Raises:
        InputError: if a weight or ``p`` is out of range, the numbers of connectors, taps and weights differ, or a
            paraphraser is no ``Paraphraser``.
    """

    title = "Factor Transfer"
    uses_taps = True

    def __init__(
        self,
        paraphraser: Paraphraser | Sequence[Paraphraser],
        translator: nn.Module | Sequence[nn.Module],
        teacher_tap: str | Sequence[str],
        student_tap: str | Sequence[str],
        *,
        beta: Annotated[float, Ge(0)] = 500.0,
        p: Annotated[float, Ge(1)] = 1.0,
        tap_weights: Sequence[Annotated[float, Ge(0)]] | None = None,
        attention: bool = False,
    ) -> None:
        super().__init__()
        paraphrasers = as_paraphrasers(paraphraser)
        self.unchanged = any(isinstance(one, Unchanged) for one in paraphrasers)
        self.in_channels = [one.in_channels for one in paraphrasers]
        self.encoders = nn.ModuleList(Frozen(_encoder(one)) for one in paraphrasers)
        self.translators = nn.ModuleList(as_modules(translator))
        self.weight = beta
        self.p = p
        self.attention = attention
        self.tap_weights = [1.0] * len(self.encoders) if tap_weights is None else list(tap_weights)
        self.set_taps(
            teacher_tap,
            student_tap,
            paraphrasers=self.encoders,
            translators=self.translators,
            weights=self.tap_weights,
        )

    @classmethod
    def needs_paraphraser(cls, settings: Mapping[str, Any]) -> bool:
        """Whether the teacher's features are paraphrased."""
        return bool(settings.get("paraphrase", True))

    @classmethod
    def between(cls, pair: Pair, *, batch_norm: bool = False, paraphrase: bool = True, **settings: Any) -> Self:
        """The term for two networks, with new translators from the student's features to the teacher's factors.

        Args:
            pair: the networks, with a paraphraser for each of the teacher's taps.
            batch_norm: whether a batch norm precedes each activation of the translators. The authors' code has none;
                mmrazor and RepDistiller have it.
            paraphrase: whether the teacher's features are paraphrased. ``False`` transfers the features themselves, to
                measure what the paraphraser contributes; stage 2 is then left out.
            settings: other keyword-only arguments of the class.

        Raises:
            InputError: if a tap, a paraphraser or a feature map is missing.
        """
        for side, taps in (("teacher", pair.teacher.taps), ("student", pair.student.taps)):
            if not taps:
                raise InputError(f"factor transfer needs a feature map of the {side}; set {side}.tap")
        if len(pair.teacher.taps) != len(pair.student.taps):
            raise InputError(
                "factor transfer needs as many taps of the student as of the teacher, but got "
                f"{list(pair.student.taps)} and {list(pair.teacher.taps)}"
            )
        paraphrasers: list[Paraphraser]
        if paraphrase:
            paraphrasers = [_paraphraser(pair, tap) for tap in pair.teacher.taps]
        else:
            paraphrasers = [Unchanged(channels) for channels, _, _ in pair.teacher.maps(pair.teacher.taps)]
        shapes = pair.student.shapes(pair.student.taps)
        for tap, shape in zip(pair.student.taps, shapes, strict=True):
            if len(shape) != 3:
                raise InputError(
                    f"the student's tap {tap!r} returns a feature of shape {shape} per image; a feature map (C, H, W) "
                    "is needed"
                )
        translators = [
            Translator(shape[0], paraphraser.factor_channels, batch_norm=batch_norm)
            for shape, paraphraser in zip(shapes, paraphrasers, strict=True)
        ]
        return cls(paraphrasers, translators, pair.teacher.taps, pair.student.taps, **settings)

    def target(self, teacher: Seen) -> Target:
        """The teacher's factors (B, z, H, W), one per tap.

        Raises:
            InputError: if a paraphraser was made for another number of channels.
        """
        for tap, channels in zip(self.teacher_taps, self.in_channels, strict=True):
            check_channels("paraphraser", channels, "teacher", tap, teacher.features[tap])
        return tuple(
            encoder(teacher.features[tap]) for encoder, tap in zip(self.encoders, self.teacher_taps, strict=True)
        )

    def target_settings(self) -> dict[str, Any]:
        """Whether the target is the teacher's feature without a paraphraser."""
        return {"paraphrase": False} if self.unchanged else {}

    def forward(self, student: Seen, target: Sequence[Tensor], batch: Batch) -> Tensor:
        """The distance of the translated features from the teacher's factors, a weighted sum over taps, 0-d.

        Raises:
            InputError: if a translator was made for another number of channels.
        """
        distances = []
        for weight, translator, tap, factor in zip(
            self.tap_weights, self.translators, self.student_taps, target, strict=True
        ):
            if isinstance(translator, Translator):
                check_channels("translator", translator.in_channels, "student", tap, student.features[tap])
            student_factor, teacher_factor = match(translator(student.features[tap]), factor)
            if student_factor.shape[1] != teacher_factor.shape[1]:
                raise InputError(
                    f"the translator of {tap!r} returns {student_factor.shape[1]} channels, but the teacher's factor "
                    f"has {teacher_factor.shape[1]}; make it with out_channels={teacher_factor.shape[1]}"
                )
            if self.attention:
                student_factor, teacher_factor = (x.float().pow(2).mean(1) for x in (student_factor, teacher_factor))
            distances.append(weight * factor_loss(student_factor, teacher_factor, self.p))
        return torch.stack(distances).sum()


def _paraphraser(pair: Pair, tap: str) -> Paraphraser:
    found = pair.paraphrasers.get(tap)
    if not isinstance(found, Paraphraser):
        raise InputError(f"factor transfer needs a paraphraser for the teacher's tap {tap!r}; run stage 2 for this tap")
    return found
