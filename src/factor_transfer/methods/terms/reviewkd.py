"""ReviewKD (Chen, Liu, Zhao, Jia: Distilling Knowledge via Knowledge Review, CVPR 2021; arXiv 2104.09044)."""

from collections.abc import Sequence
from typing import Annotated, Any, Self

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

from factor_transfer.data import Batch
from factor_transfer.methods.term import Pair, Target, Term
from factor_transfer.taps.extract import Seen
from factor_transfer.taps.stages import pre_activation

_PYRAMID = 4, 2, 1  # height and width of the pooled maps that are compared beside the whole one
_MOST_CHANNELS = 512  # of what is handed from level to level


def context_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Hierarchical context loss: mean squared error of two maps and of what is pooled of them (section 3.3).

    The pooled maps are 4 x 4, 2 x 2 and 1 x 1, those of them that are smaller than the map; their weights, with the
    whole map's 1, are 1/2, 1/4, 1/8, divided by their sum, as in the authors' code.

    Args:
        student: (B, C, H, W); gradient flows into it.
        teacher: the same shape.

    Returns:
        0-d.
    """
    student, teacher = student.float(), teacher.float()
    loss, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
    for size in _PYRAMID:
        if size < min(student.shape[2:]):
            weight /= 2
            pooled = F.adaptive_avg_pool2d(student, size), F.adaptive_avg_pool2d(teacher, size)
            loss, total = loss + weight * F.mse_loss(*pooled), total + weight
    return loss / total


class Fusion(nn.Module):
    """Attention-based fusion of a level's feature with what comes from the deeper ones (section 3.3).

    Args:
        in_channels: of the student's feature.
        channels: of what is handed on.
        out_channels: of the teacher's feature.
        fuse: whether there is a deeper level.
    """

    def __init__(self, in_channels: int, channels: int, out_channels: int, fuse: bool) -> None:
        super().__init__()
        project = nn.Conv2d(in_channels, channels, 1, bias=False)
        review = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        for convolution in (project, review):
            nn.init.kaiming_uniform_(convolution.weight, a=1)  # as in the authors' code
        self.project = nn.Sequential(project, nn.BatchNorm2d(channels))
        self.attend = nn.Sequential(nn.Conv2d(2 * channels, 2, 1), nn.Sigmoid()) if fuse else None
        self.review = nn.Sequential(review, nn.BatchNorm2d(out_channels))

    def forward(self, feature: Tensor, deeper: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        """One level.

        Args:
            feature: the student's (B, C, H, W).
            deeper: what the deeper level handed on, (B, channels, H', W'), if there is one.
            size: height and width of the teacher's feature.

        Returns:
            What is handed on, and what is compared with the teacher's feature; both of its height and width. Maps are
            resized to the nearest place, as in the authors' code.
        """
        x = self.project(feature)
        if self.attend is not None:
            assert deeper is not None
            deeper = F.interpolate(deeper, x.shape[2:], mode="nearest")
            attention = self.attend(torch.cat([x, deeper], 1))  # (B, 2, H, W)
            x = x * attention[:, :1] + deeper * attention[:, 1:]
        if x.shape[2:] != size:
            x = F.interpolate(x, size, mode="nearest")
        return x, self.review(x)


class ReviewKD(Term):
    """The student's deep features help its shallow ones to say what the teacher's say.

    Example:
        >>> import torch
        >>> from factor_transfer import Distillation, Pair, ReviewKD, Side, build_model
        >>> teacher, student = build_model("resnet20", 10), build_model("resnet8", 10)
        >>> images, labels = torch.randn(4, 3, 32, 32), torch.tensor([3, 7, 3, 0])
        >>> pair = Pair(Side(teacher, ["layer3"], images), Side(student, ["layer3"], images))
        >>> method = Distillation(student, teacher, {"reviewkd": ReviewKD.between(pair)})
        >>> losses = method(images, labels)
        >>> sorted(losses)
        ['accuracy', 'loss', 'loss_ce', 'loss_reviewkd']

    Args:
        fusions: one a level.
        teacher_taps: one a level, from the shallowest to the deepest.
        student_taps: of the student, one for each of them.
        pooled: whether the deepest level is compared when it is pooled to 1 x 1.
        weight: 1 is the default of the authors' code; their script for CIFAR-100 has 0.6 to 8, 5 for most pairs.
        warmup_epochs: in so many epochs the weight rises to its full size. 20 is the authors' for CIFAR-100; theirs
            rises from 0, this from 1/20.
    """

    def __init__(
        self,
        fusions: Sequence[Fusion],
        teacher_taps: Sequence[str],
        student_taps: Sequence[str],
        pooled: bool,
        *,
        weight: Annotated[float, Ge(0)] = 1.0,
        warmup_epochs: Annotated[float, Ge(0)] = 20.0,
    ) -> None:
        super().__init__()
        self.fusions = nn.ModuleList(fusions)
        self.teacher_taps, self.student_taps, self.pooled = teacher_taps, student_taps, pooled
        self.weight, self.warmup_epochs = weight, warmup_epochs

    @classmethod
    def between(
        cls,
        pair: Pair,
        *,
        teacher_taps: list[str] | None = None,
        student_taps: list[str] | None = None,
        pooled: bool = True,
        **settings: Any,
    ) -> Self:
        """The term for two networks.

        Args:
            pair: the networks.
            teacher_taps: from the shallowest to the deepest. Before the last ReLU of each stage, if left out, as in
                the authors' code.
            student_taps: likewise. The ends of the stages, if left out; of the network that has more, its last ones.
            pooled: whether the last stages, pooled to 1 x 1, are one more level, the deepest. The authors' code for
                CIFAR-100 has it.
            settings: see the class.

        Raises:
            InputError: a feature that is no map.
        """
        other = pair.teacher
        before = [pre_activation(other.model, other.images[:2], stage) for stage in other.stages]
        teacher, student = pair.connect("reviewkd", teacher_taps, student_taps, (before, pair.student.stages))
        if pooled:
            teacher, student = [*teacher, other.stages[-1]], [*student, pair.student.stages[-1]]
        ins, outs = pair.student.maps(student), other.maps(teacher)
        handed = min(_MOST_CHANNELS, ins[-1][0])
        fusions = [
            Fusion(in_shape[0], handed, out_shape[0], fuse=level < len(ins) - 1)
            for level, (in_shape, out_shape) in enumerate(zip(ins, outs, strict=True))
        ]
        return cls(fusions, teacher, student, pooled, **settings)

    def target(self, teacher: Seen) -> Target:
        """The teacher's features (B, C, H, W)."""
        return self._levels(teacher, self.teacher_taps)

    def forward(self, student: Seen, target: Sequence[Tensor], batch: Batch) -> Tensor:
        """The sum of the levels' losses, 0-d."""
        features = self._levels(student, self.student_taps)
        distances: list[Tensor] = []
        handed: Tensor | None = None
        for fusion, own, other in reversed(list(zip(self.fusions, features, target, strict=True))):
            handed, said = fusion(own, handed, other.shape[2:])
            distances.append(context_loss(said, other))
        return torch.stack(distances).sum()

    def _levels(self, seen: Seen, taps: Sequence[str]) -> tuple[Tensor, ...]:
        levels = [seen.features[tap] for tap in taps]
        if self.pooled:
            levels[-1] = F.adaptive_avg_pool2d(levels[-1], 1)
        return tuple(levels)
