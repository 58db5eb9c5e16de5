"""FitNets (Romero, Ballas, Kahou, Chassang, Gatta, Bengio: Hints for Thin Deep Nets, ICLR 2015; arXiv 1412.6550)."""

from collections.abc import Sequence
from typing import Annotated, Any, Self

from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

from factor_transfer.data import Batch
from factor_transfer.methods.term import Pair, Target, Term, match
from factor_transfer.taps.extract import Seen


class FitNets(Term):
    """A regressor at the student's hint layer says the teacher's feature: mean squared error (equation 3).

    The paper trains hints first and the task afterwards; here, as in later comparisons, both are one sum.

    Example:
        >>> import torch
        >>> from factor_transfer import Distillation, FitNets, Pair, Side, build_model
        >>> teacher, student = build_model("resnet20", 10), build_model("resnet8", 10)
        >>> images, labels = torch.randn(4, 3, 32, 32), torch.tensor([3, 7, 3, 0])
        >>> pair = Pair(Side(teacher, ["layer3"], images), Side(student, ["layer3"], images))
        >>> method = Distillation(student, teacher, {"fitnets": FitNets.between(pair)})
        >>> losses = method(images, labels)
        >>> sorted(losses)
        ['accuracy', 'loss', 'loss_ce', 'loss_fitnets']

    Args:
        regressors: one a tap: the student's feature -> as many channels as the teacher's.
        teacher_taps: hint layers of the teacher.
        student_taps: of the student, one for each of them.
        weight: 100 is usual in later comparisons (Tian, Krishnan, Isola 2020).
    """

    def __init__(
        self,
        regressors: Sequence[nn.Module],
        teacher_taps: Sequence[str],
        student_taps: Sequence[str],
        *,
        weight: Annotated[float, Ge(0)] = 100.0,
    ) -> None:
        super().__init__()
        self.regressors = nn.ModuleList(regressors)
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
        """The term for two networks, with a 1x1 convolution a tap; taps are the middle stages if none are named."""
        middles = [[side.stages[(len(side.stages) - 1) // 2]] for side in (pair.teacher, pair.student)]
        teacher, student = pair.connect("fitnets", teacher_taps, student_taps, (middles[0], middles[1]))
        channels = zip(pair.student.maps(student), pair.teacher.maps(teacher), strict=True)
        return cls([nn.Conv2d(own[0], other[0], 1) for own, other in channels], teacher, student, **settings)

    def target(self, teacher: Seen) -> Target:
        """The teacher's features (B, C, H, W)."""
        return tuple(teacher.features[tap] for tap in self.teacher_taps)

    def forward(self, student: Seen, target: Sequence[Tensor], batch: Batch) -> Tensor:
        """The sum of the squared errors at all taps, 0-d; the larger map is pooled, see ``match``."""
        distances = []
        for tap, regressor, feature in zip(self.student_taps, self.regressors, target, strict=True):
            own, other = match(student.features[tap], feature)
            distances.append(F.mse_loss(regressor(own).float(), other.float()))
        return sum(distances[1:], start=distances[0])
