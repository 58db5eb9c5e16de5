"""AT (Zagoruyko, Komodakis: Paying More Attention to Attention, ICLR 2017; arXiv 1612.03928)."""

from collections.abc import Sequence
from typing import Annotated, Any, Self

from annotated_types import Ge
from torch import Tensor
from torch.nn import functional as F

from factor_transfer.data import Batch
from factor_transfer.errors import InputError
from factor_transfer.methods.term import Pair, Target, Term, match
from factor_transfer.taps.extract import Seen


def energy(feature: Tensor) -> Tensor:
    """Where a feature map (B, C, H, W) is strong: ``mean_c(x²)``; (B, 1, H, W), float32.

    Raises:
        InputError: it is no map.
    """
    if feature.dim() != 4:
        raise InputError(f"attention is that of a feature map (B, C, H, W), got shape {tuple(feature.shape)}")
    return feature.float().pow(2).mean(1, keepdim=True)


def energy_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two energies, each sample's brought to length 1 (equation 2, as in the authors' code).

    Args:
        student: (B, 1, H, W); gradient flows into it.
        teacher: (B, 1, H', W'); of other height or width, the larger is pooled, see ``match``.
    """
    own, other = (F.normalize(map_.flatten(1), dim=1) for map_ in match(student, teacher))
    return F.mse_loss(own, other)


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """``energy_loss`` of two feature maps.

    Example:
        >>> import torch
        >>> from factor_transfer import attention_loss
        >>> feature = torch.randn(2, 16, 8, 8)
        >>> attention_loss(feature, -feature)  # where the two look is the same
        tensor(0.)

    Args:
        student: (B, C, H, W); gradient flows into it. The number of channels may differ.
        teacher: (B, C', H', W').

    Returns:
        0-d. The scale of either feature does not matter.
    """
    return energy_loss(energy(student), energy(teacher))


class AttentionTransfer(Term):
    """The student looks where the teacher looks, at the end of every stage.

    Example:
        >>> import torch
        >>> from factor_transfer import AttentionTransfer, Distillation, Pair, Side, build_model
        >>> teacher, student = build_model("resnet20", 10), build_model("resnet8", 10)
        >>> images, labels = torch.randn(4, 3, 32, 32), torch.tensor([3, 7, 3, 0])
        >>> pair = Pair(Side(teacher, ["layer3"], images), Side(student, ["layer3"], images))
        >>> method = Distillation(student, teacher, {"at": AttentionTransfer.between(pair)})
        >>> losses = method(images, labels)
        >>> sorted(losses)
        ['accuracy', 'loss', 'loss_at', 'loss_ce']

    Args:
        teacher_taps: features of the teacher.
        student_taps: of the student, one for each of them.
        weight: 1000 is usual.
    """

    def __init__(
        self, teacher_taps: Sequence[str], student_taps: Sequence[str], *, weight: Annotated[float, Ge(0)] = 1000.0
    ) -> None:
        super().__init__()
        self.teacher_taps, self.student_taps, self.weight = teacher_taps, student_taps, weight

    @classmethod
    def between(
        cls,
        pair: Pair,
        *,
        teacher_taps: list[str] | None = None,
        student_taps: list[str] | None = None,
        **settings: Any,
    ) -> Self:
        """The term for two networks; where no taps are named, the ends of their stages, paired from the last."""
        defaults = pair.teacher.stages, pair.student.stages
        return cls(*pair.connect("at", teacher_taps, student_taps, defaults), **settings)

    def target(self, teacher: Seen) -> Target:
        """The teacher's energies (B, 1, H, W)."""
        return tuple(energy(teacher.features[tap]) for tap in self.teacher_taps)

    def forward(self, student: Seen, target: Sequence[Tensor], batch: Batch) -> Tensor:
        """The sum of the distances at all taps, 0-d."""
        energies = [energy(student.features[tap]) for tap in self.student_taps]
        distances = [energy_loss(*two) for two in zip(energies, target, strict=True)]
        return sum(distances[1:], start=distances[0])
