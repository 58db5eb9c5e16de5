"""FitNets (Romero, Ballas, Kahou, Chassang, Gatta, Bengio: Hints for Thin Deep Nets, ICLR 2015; arXiv 1412.6550)."""

from collections.abc import Sequence
from typing import Annotated, Any, Self

from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

from factor_transfer.data import Batch
from factor_transfer.methods.shapes import check_same_shape
from factor_transfer.methods.term import Pair, Target, Term, as_modules, match
from factor_transfer.taps.extract import Seen


class FitNets(Term):
    """A regressor predicts the teacher's feature from the student's, with the mean squared error (equation 3).

    The paper trains on the hints first and on the task afterwards. Here, as in later comparisons, the two losses are
    summed.

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
        regressors: one module per tap that maps the student's feature to the teacher's number of channels.
        teacher_taps: the taps of the teacher's hint layers.
        student_taps: the taps of the student's guided layers, one per tap of the teacher.
        weight: the factor that the loss is multiplied by. 100 is usual in later comparisons (Tian, Krishnan, Isola
            2020).

    Raises:
        InputError: if the weight is out of range, or the numbers of regressors and taps differ.
    """

    title = "FitNets"

    def __init__(
        self,
        regressors: nn.Module | Sequence[nn.Module],
        teacher_taps: str | Sequence[str],
        student_taps: str | Sequence[str],
        *,
        weight: Annotated[float, Ge(0)] = 100.0,
    ) -> None:
        super().__init__()
        self.regressors = nn.ModuleList(as_modules(regressors))
        self.weight = weight
        self.set_taps(teacher_taps, student_taps, regressors=self.regressors)

    @classmethod
    def between(
        cls,
        pair: Pair,
        *,
        teacher_taps: list[str] | None = None,
        student_taps: list[str] | None = None,
        **settings: Any,
    ) -> Self:
        """The term for two networks, with a 1x1 convolution per tap. The default taps are their middle stages."""
        middles = [[side.stages[(len(side.stages) - 1) // 2]] for side in (pair.teacher, pair.student)]
        teacher, student = pair.connect("fitnets", teacher_taps, student_taps, (middles[0], middles[1]))
        channels = zip(pair.student.maps(student), pair.teacher.maps(teacher), strict=True)  # (C, H, W) each
        regressors = [nn.Conv2d(student_map[0], teacher_map[0], 1) for student_map, teacher_map in channels]
        return cls(regressors, teacher, student, **settings)

    def target(self, teacher: Seen) -> Target:
        """The teacher's features (B, C, H, W)."""
        return tuple(teacher.features[tap] for tap in self.teacher_taps)

    def forward(self, student: Seen, target: Sequence[Tensor], batch: Batch) -> Tensor:
        """The sum of the mean squared errors of all taps, 0-d. The larger map is pooled, see ``match``.

        Raises:
            InputError: if a regressor does not return the teacher's number of channels, or a feature is not a map.
        """
        distances = []
        for tap, regressor, feature in zip(self.student_taps, self.regressors, target, strict=True):
            student_feature, teacher_feature = match(student.features[tap], feature)
            predicted = regressor(student_feature)
            check_same_shape(f"FitNets, after the regressor of {tap!r},", predicted, teacher_feature)
            distances.append(F.mse_loss(predicted.float(), teacher_feature.float()))
        return sum(distances[1:], start=distances[0])
