"""ReviewKD (Chen, Liu, Zhao, Jia: Distilling Knowledge via Knowledge Review, CVPR 2021; arXiv 2104.09044)."""

from collections.abc import Sequence
from typing import Annotated, Any, Self

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

from factor_transfer.data import Batch
from factor_transfer.errors import InputError
from factor_transfer.methods.shapes import check_channels, check_same_shape
from factor_transfer.methods.term import Pair, Target, Term, as_modules
from factor_transfer.taps.extract import Seen
from factor_transfer.taps.stages import pre_activation

_PYRAMID = 4, 2, 1  # height and width of the pooled maps that are compared in addition to the whole map
_MAX_CHANNELS = 512  # of the feature that is passed from level to level


def context_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The hierarchical context loss: the mean squared error between two maps and between pooled maps (section 3.3).

    The maps are pooled to 4 x 4, 2 x 2 and 1 x 1, as far as these sizes are smaller than the map. The errors have the
    weights 1 for the whole map and 1/2, 1/4, 1/8 for the pooled maps, divided by their sum, as in the authors' code.

    Args:
        student: the student's feature map (B, C, H, W). It receives the gradient.
        teacher: the teacher's feature map, of the same shape.

    Returns:
        The loss, 0-d.

    Raises:
        InputError: if the shapes differ, or a feature is not a map.
    """
    check_same_shape("context_loss", student, teacher)
    if student.dim() != 4:
        raise InputError(f"context_loss compares feature maps (B, C, H, W), but got shape {tuple(student.shape)}")
    student, teacher = student.float(), teacher.float()
    loss, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
    for size in _PYRAMID:
        if size < min(student.shape[2:]):
            weight /= 2
            pooled = F.adaptive_avg_pool2d(student, size), F.adaptive_avg_pool2d(teacher, size)
            loss, total = loss + weight * F.mse_loss(*pooled), total + weight
    return loss / total


class Fusion(nn.Module):
    """The attention-based fusion of a level's feature with the fused feature of the deeper levels (section 3.3).

    Args:
        in_channels: the number of channels of the student's feature.
        channels: the number of channels of the fused feature, which is passed to the next shallower level.
        out_channels: the number of channels of the teacher's feature.
        fuse: whether there is a deeper level.
    """

    def __init__(self, in_channels: int, channels: int, out_channels: int, fuse: bool) -> None:
        super().__init__()
        self.in_channels = in_channels
        project = nn.Conv2d(in_channels, channels, 1, bias=False)
        review = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        for convolution in (project, review):
            nn.init.kaiming_uniform_(convolution.weight, a=1)  # as in the authors' code
        self.project = nn.Sequential(project, nn.BatchNorm2d(channels))
        self.attend = nn.Sequential(nn.Conv2d(2 * channels, 2, 1), nn.Sigmoid()) if fuse else None
        self.review = nn.Sequential(review, nn.BatchNorm2d(out_channels))

    def forward(self, feature: Tensor, deeper: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        """Fuse one level.

        Args:
            feature: the student's feature (B, C, H, W).
            deeper: the fused feature of the next deeper level, (B, channels, H', W'), if there is one.
            size: the height and width of the teacher's feature.

        Returns:
            The fused feature, and the feature that is compared with the teacher's. Both have the teacher's height and
            width. Maps are resized by nearest-neighbour interpolation, as in the authors' code.
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
    """The student's features, each fused with its deeper ones, follow the teacher's.

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
        fusions: the fusion modules, one per level.
        teacher_taps: the taps of the teacher, one per level, from the shallowest to the deepest.
        student_taps: the taps of the student, one per tap of the teacher.
        pooled: whether the features of the deepest level are pooled to 1 x 1.
        weight: the factor that the loss is multiplied by. The default of the authors' code is 1; their scripts for
            CIFAR-100 use 0.6 to 8, and 5 for most pairs.
        warmup_epochs: the number of epochs in which the weight rises linearly to its full size. The authors use 20 for
            CIFAR-100. Their weight rises from 0, this one from 1/20.

    Raises:
        InputError: if a setting is out of range, or the numbers of fusions and taps differ.
    """

    title = "ReviewKD"

    def __init__(
        self,
        fusions: Fusion | Sequence[Fusion],
        teacher_taps: str | Sequence[str],
        student_taps: str | Sequence[str],
        pooled: bool,
        *,
        weight: Annotated[float, Ge(0)] = 1.0,
        warmup_epochs: Annotated[float, Ge(0)] = 20.0,
    ) -> None:
        super().__init__()
        self.fusions = nn.ModuleList(as_modules(fusions))
        self.pooled, self.weight, self.warmup_epochs = pooled, weight, warmup_epochs
        self.set_taps(teacher_taps, student_taps, fusions=self.fusions)

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
            teacher_taps: the teacher's taps, from the shallowest to the deepest. By default they precede the last ReLU
                of each stage, as in the authors' code.
            student_taps: the student's taps, from the shallowest to the deepest. By default they are the ends of its
                stages. If one network has more default taps than the other, its last ones are used.
            pooled: whether the last stages, pooled to 1 x 1, are an additional deepest level, as in the authors' code
                for CIFAR-100.
            settings: other keyword-only arguments of the class.

        Raises:
            InputError: if a feature is not a map.
        """
        side = pair.teacher
        before = [pre_activation(side.model, side.images[:2], stage) for stage in side.stages]
        teacher, student = pair.connect("reviewkd", teacher_taps, student_taps, (before, pair.student.stages))
        if pooled:
            teacher, student = [*teacher, side.stages[-1]], [*student, pair.student.stages[-1]]
        in_shapes, out_shapes = pair.student.maps(student), side.maps(teacher)
        channels = min(_MAX_CHANNELS, in_shapes[-1][0])
        fusions = [
            Fusion(in_shape[0], channels, out_shape[0], fuse=level < len(in_shapes) - 1)
            for level, (in_shape, out_shape) in enumerate(zip(in_shapes, out_shapes, strict=True))
        ]
        return cls(fusions, teacher, student, pooled, **settings)

    def target(self, teacher: Seen) -> Target:
        """The teacher's features (B, C, H, W)."""
        return self._levels(teacher, self.teacher_taps)

    def forward(self, student: Seen, target: Sequence[Tensor], batch: Batch) -> Tensor:
        """The sum of the losses of all levels, 0-d.

        Raises:
            InputError: if a feature does not have the channels that its fusion module was made for.
        """
        for fusion, tap in zip(self.fusions, self.student_taps, strict=True):
            if isinstance(fusion, Fusion):
                check_channels("fusion module", fusion.in_channels, "student", tap, student.features[tap])
        features = self._levels(student, self.student_taps)
        distances: list[Tensor] = []
        fused: Tensor | None = None
        for fusion, feature, teacher in reversed(list(zip(self.fusions, features, target, strict=True))):
            fused, reviewed = fusion(feature, fused, teacher.shape[2:])
            distances.append(context_loss(reviewed, teacher))
        return torch.stack(distances).sum()

    def _levels(self, outputs: Seen, taps: Sequence[str]) -> tuple[Tensor, ...]:
        levels = [outputs.features[tap] for tap in taps]
        for tap, feature in zip(taps, levels, strict=True):
            if feature.dim() != 4:
                raise InputError(
                    f"reviewkd needs feature maps (B, C, H, W), but tap {tap!r} returns shape {tuple(feature.shape)}"
                )
        if self.pooled:
            levels[-1] = F.adaptive_avg_pool2d(levels[-1], 1)
        return tuple(levels)
