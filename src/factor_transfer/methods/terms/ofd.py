"""OFD (Heo, Kim, Yun, Park, Kwak, Choi: A Comprehensive Overhaul of Feature Distillation, ICCV 2019).

arXiv 1904.01866.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Self

import torch
from annotated_types import Ge
from torch import Tensor, nn

from factor_transfer.data import Batch
from factor_transfer.errors import InputError
from factor_transfer.methods.shapes import check_same_shape
from factor_transfer.methods.term import Pair, Target, Term, as_modules, match
from factor_transfer.taps.extract import Seen
from factor_transfer.taps.stages import pre_activation


def negative_mean(feature: Tensor) -> Tensor:
    """The margin of the margin ReLU: the mean of each channel's negative responses (section 3.2).

    Args:
        feature: the feature map before its activation, (B, C, H, W).

    Returns:
        The margins, float32 (C,), at most 0. The margin of a channel without negative responses is 0.
    """
    negative = feature.float().clamp_max(0)
    return negative.sum((0, 2, 3)) / (feature < 0).sum((0, 2, 3)).clamp_min(1)


def partial_distance(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """The partial L2 distance from the teacher's feature after the margin ReLU (section 3.2).

    Positions where the teacher's response is not positive and the student's is below it do not contribute.

    Args:
        student: the student's feature after its connector, (B, C, H, W). It receives the gradient.
        teacher: the teacher's feature before its activation, (B, C, H, W).
        margin: the margins of the channels, (C,), at most 0.

    Returns:
        The distance, 0-d, summed over channels and positions and averaged over samples, as in the authors' code.

    Raises:
        InputError: if the shapes differ.
    """
    check_same_shape("partial_distance", student, teacher)
    if margin.shape != teacher.shape[1:2]:
        raise InputError(
            f"partial_distance needs a margin for each channel, but the margins have shape {tuple(margin.shape)} and "
            f"the teacher's feature {tuple(teacher.shape)}"
        )
    student, teacher = student.float(), teacher.float()
    target = torch.maximum(teacher, margin[:, None, None])
    contributes = (student > target) | (target > 0)
    return ((student - target).pow(2) * contributes).sum((1, 2, 3)).mean()


def connector(in_channels: int, out_channels: int) -> nn.Sequential:
    """The transform of the student's feature, a 1x1 convolution and batch norm, initialised as in the authors' code."""
    convolution = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    nn.init.normal_(convolution.weight, std=math.sqrt(2 / out_channels))
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))


class OFD(Term):
    """The student's features follow the teacher's, taken before the last ReLU of every stage.

    The distances of n stages are summed with the weights 1 / 2^(n - 1), …, 1/2, 1, as in the authors' code.

    Example:
        >>> import torch
        >>> from factor_transfer import Distillation, OFD, Pair, Side, build_model
        >>> teacher, student = build_model("resnet20", 10), build_model("resnet8", 10)
        >>> images, labels = torch.randn(4, 3, 32, 32), torch.tensor([3, 7, 3, 0])
        >>> pair = Pair(Side(teacher, ["layer3"], images), Side(student, ["layer3"], images))
        >>> method = Distillation(student, teacher, {"ofd": OFD.between(pair)})
        >>> losses = method(images, labels)
        >>> sorted(losses)
        ['accuracy', 'loss', 'loss_ce', 'loss_ofd']

    Args:
        connectors: one module per tap that maps the student's feature to the teacher's number of channels.
        margins: the margins of the teacher's channels, one tensor (C,) per tap, see ``negative_mean``.
        teacher_taps: the taps of the teacher's features before their activation.
        student_taps: the taps of the student's features, one per tap of the teacher.
        weight: the factor that the loss is multiplied by. The authors use 1/1000 for CIFAR-100. The distance is a sum
            over channels and positions, so the same weight is stronger for larger features.

    Raises:
        InputError: if the weight is out of range, or the numbers of connectors, margins and taps differ.
    """

    title = "OFD"

    def __init__(
        self,
        connectors: nn.Module | Sequence[nn.Module],
        margins: Tensor | Sequence[Tensor],
        teacher_taps: str | Sequence[str],
        student_taps: str | Sequence[str],
        *,
        weight: Annotated[float, Ge(0)] = 1e-3,
    ) -> None:
        super().__init__()
        self.connectors = nn.ModuleList(as_modules(connectors))
        margins = [margins] if isinstance(margins, Tensor) and margins.dim() == 1 else list(margins)
        for index, margin in enumerate(margins):
            self.register_buffer(f"margin{index}", margin)
        self.weight = weight
        self.set_taps(teacher_taps, student_taps, connectors=self.connectors, margins=margins)

    @classmethod
    def between(
        cls,
        pair: Pair,
        *,
        teacher_taps: list[str] | None = None,
        student_taps: list[str] | None = None,
        **settings: Any,
    ) -> Self:
        """The term for two networks. The default taps precede the last ReLU of each stage, see ``pre_activation``.

        As a departure from the paper, the margins are measured on the pair's images. The paper measures them on the
        training images, and the authors' code computes them from the parameters of the batch norm before the tap, which
        not all networks have.

        Raises:
            InputError: if a feature is not a map.
        """
        sides = pair.teacher, pair.student
        before = [[pre_activation(side.model, side.images[:2], stage) for stage in side.stages] for side in sides]
        teacher, student = pair.connect("ofd", teacher_taps, student_taps, (before[0], before[1]))
        channels = zip(pair.student.maps(student), pair.teacher.maps(teacher), strict=True)  # (C, H, W) each
        _, features = pair.teacher.see(teacher)
        margins = [negative_mean(features[tap]) for tap in teacher]
        connectors = [connector(student_map[0], teacher_map[0]) for student_map, teacher_map in channels]
        return cls(connectors, margins, teacher, student, **settings)

    def target(self, teacher: Seen) -> Target:
        """The teacher's features (B, C, H, W). They are pooled later, because the size depends on the student."""
        return tuple(teacher.features[tap] for tap in self.teacher_taps)

    def forward(self, student: Seen, target: Sequence[Tensor], batch: Batch) -> Tensor:
        """The weighted sum of the distances of all taps, 0-d. The larger map is pooled, see ``match``."""
        distances = []
        for index, (tap, connect, feature) in enumerate(zip(self.student_taps, self.connectors, target, strict=True)):
            student_feature, teacher_feature = match(student.features[tap], feature)
            distance = partial_distance(connect(student_feature), teacher_feature, self.get_buffer(f"margin{index}"))
            distances.append(distance / 2 ** (len(target) - 1 - index))
        return torch.stack(distances).sum()
