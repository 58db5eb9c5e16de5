"""AT (Zagoruyko, Komodakis: Paying More Attention to Attention, ICLR 2017; arXiv 1612.03928)."""

from collections.abc import Sequence
from typing import Annotated, Any, Self

from annotated_types import Ge
from torch import Tensor
from torch.nn import functional as F

from factor_transfer.data import Batch
from factor_transfer.errors import InputError
from factor_transfer.methods.shapes import check_same_images, check_same_shape
from factor_transfer.methods.term import Pair, Target, Term, match
from factor_transfer.taps.extract import Seen


def energy(feature: Tensor) -> Tensor:
    """The spatial attention of a feature map (B, C, H, W): ``mean_c(x²)``, float32 (B, 1, H, W).

    Raises:
        InputError: if the feature is not a map.
    """
    if feature.dim() != 4:
        raise InputError(f"at needs a feature map (B, C, H, W), but the feature has shape {tuple(feature.shape)}")
    return feature.float().pow(2).mean(1, keepdim=True)


def energy_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared difference of two attention maps, each divided by its L2 norm per sample.

    This is equation 2 as in the authors' code.

    Args:
        student: the student's attention (B, 1, H, W). It receives the gradient.
        teacher: the teacher's attention (B, 1, H', W'). If the sizes differ, the larger map is pooled, see ``match``.

    Returns:
        The loss, 0-d.

    Raises:
        InputError: if an attention is not a map, or the numbers of samples or channels differ.
    """
    student, teacher = match(student, teacher)
    check_same_shape("energy_loss", student, teacher)
    student, teacher = (F.normalize(energies.flatten(1), dim=1) for energies in (student, teacher))
    return F.mse_loss(student, teacher)


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The attention transfer loss between two feature maps: ``energy_loss`` of their ``energy``.

    Example:
        >>> import torch
        >>> from factor_transfer import attention_loss
        >>> feature = torch.randn(2, 16, 8, 8)
        >>> attention_loss(feature, -feature)  # both have the same attention
        tensor(0.)

    Args:
        student: the student's feature map (B, C, H, W). It receives the gradient.
        teacher: the teacher's feature map (B, C', H', W').

    Returns:
        The loss, 0-d. It does not depend on the scale of either feature.

    Raises:
        InputError: if a feature is not a map, or the numbers of samples differ.
    """
    energies = energy(student), energy(teacher)
    check_same_images(student, teacher)
    return energy_loss(*energies)


class AttentionTransfer(Term):
    """The student's spatial attention follows the teacher's at the end of every stage.

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
        teacher_taps: the taps of the teacher's feature maps.
        student_taps: the taps of the student's feature maps, one per tap of the teacher.
        weight: the factor that the loss is multiplied by. 1000 is usual.

    Raises:
        InputError: if the weight is out of range, or the numbers of taps differ.
    """

    title = "AT"

    def __init__(
        self,
        teacher_taps: str | Sequence[str],
        student_taps: str | Sequence[str],
        *,
        weight: Annotated[float, Ge(0)] = 1000.0,
    ) -> None:
        super().__init__()
        self.weight = weight
        self.set_taps(teacher_taps, student_taps)

    @classmethod
    def between(
        cls,
        pair: Pair,
        *,
        teacher_taps: list[str] | None = None,
        student_taps: list[str] | None = None,
        **settings: Any,
    ) -> Self:
        """The term for two networks. The default taps are the ends of their stages, paired from the last stage on."""
        defaults = pair.teacher.stages, pair.student.stages
        return cls(*pair.connect("at", teacher_taps, student_taps, defaults), **settings)

    def target(self, teacher: Seen) -> Target:
        """The teacher's attention maps (B, 1, H, W)."""
        return tuple(energy(teacher.features[tap]) for tap in self.teacher_taps)

    def forward(self, student: Seen, target: Sequence[Tensor], batch: Batch) -> Tensor:
        """The sum of the losses of all taps, 0-d."""
        energies = [energy(student.features[tap]) for tap in self.student_taps]
        distances = [energy_loss(*pair) for pair in zip(energies, target, strict=True)]
        return sum(distances[1:], start=distances[0])
