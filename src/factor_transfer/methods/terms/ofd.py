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
from factor_transfer.methods.term import Pair, Target, Term, match
from factor_transfer.taps.extract import Seen
from factor_transfer.taps.stages import pre_activation


def negative_mean(feature: Tensor) -> Tensor:
    """The margin of margin ReLU: each channel's mean negative response (section 3.2).

    Args:
        feature: (B, C, H, W), before its activation.

    Returns:
        (C,), float32, none above 0; 0 for a channel that is never negative.
    """
    negative = feature.float().clamp_max(0)
    return negative.sum((0, 2, 3)) / (feature < 0).sum((0, 2, 3)).clamp_min(1)


def partial_distance(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """Partial L2 distance from the teacher's feature behind margin ReLU (section 3.2).

    Where the teacher's response is not positive and the student's lies below it already, there is nothing to learn.

    Args:
        student: (B, C, H, W), transformed; gradient flows into it.
        teacher: (B, C, H, W), before its activation.
        margin: (C,), not above 0.

    Returns:
        0-d: the sum over channels and places, the mean over samples, as in the authors' code.
    """
    student, teacher = student.float(), teacher.float()
    wanted = torch.maximum(teacher, margin[:, None, None])
    counts = (student > wanted) | (wanted > 0)
    return ((student - wanted).pow(2) * counts).sum((1, 2, 3)).mean()


def connector(in_channels: int, out_channels: int) -> nn.Sequential:
    """The student's transform: 1x1 convolution and batch norm, initialised as the authors do."""
    convolution = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    nn.init.normal_(convolution.weight, std=math.sqrt(2 / out_channels))
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))


class OFD(Term):
    """The student's features follow the teacher's before the last ReLU of every stage.

    The distances of n stages are summed with weights 1 / 2^(n - 1) … 1/2, 1, as in the authors' code.

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
        connectors: one a tap: the student's feature -> as many channels as the teacher's.
        margins: one a tap, (C,): see ``negative_mean``.
        teacher_taps: features before their activation.
        student_taps: of the student, one for each of them.
        weight: 1/1000 is the authors' for CIFAR-100. The distance is a sum over channels and places: one weight means
            different strengths at different sizes of the feature.
    """

    def __init__(
        self,
        connectors: Sequence[nn.Module],
        margins: Sequence[Tensor],
        teacher_taps: Sequence[str],
        student_taps: Sequence[str],
        *,
        weight: Annotated[float, Ge(0)] = 1e-3,
    ) -> None:
        super().__init__()
        self.connectors = nn.ModuleList(connectors)
        for index, margin in enumerate(margins):
            self.register_buffer(f"margin{index}", margin)
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
        """The term for two networks; if no taps are named, before the last ReLU of each stage, see ``pre_activation``.

        A departure: margins are measured on the pair's images. The paper takes them over the training images, and the
        authors' code works them out of the parameters of the batch norm before the tap, which not all networks have.

        Raises:
            InputError: a feature that is no map.
        """
        sides = pair.teacher, pair.student
        before = [[pre_activation(side.model, side.images[:2], stage) for stage in side.stages] for side in sides]
        teacher, student = pair.connect("ofd", teacher_taps, student_taps, (before[0], before[1]))
        channels = zip(pair.student.maps(student), pair.teacher.maps(teacher), strict=True)
        _, features = pair.teacher.see(teacher)
        margins = [negative_mean(features[tap]) for tap in teacher]
        return cls([connector(own[0], other[0]) for own, other in channels], margins, teacher, student, **settings)

    def target(self, teacher: Seen) -> Target:
        """The teacher's features (B, C, H, W): how they are pooled depends on the student's size."""
        return tuple(teacher.features[tap] for tap in self.teacher_taps)

    def forward(self, student: Seen, target: Sequence[Tensor], batch: Batch) -> Tensor:
        """The weighted sum of the distances at all taps, 0-d; the larger map is pooled, see ``match``."""
        distances = []
        for index, (tap, connect, feature) in enumerate(zip(self.student_taps, self.connectors, target, strict=True)):
            own, other = match(student.features[tap], feature)
            distance = partial_distance(connect(own), other, self.get_buffer(f"margin{index}"))
            distances.append(distance / 2 ** (len(target) - 1 - index))
        return torch.stack(distances).sum()
