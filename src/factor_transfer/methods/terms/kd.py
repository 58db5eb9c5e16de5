"""KD (Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015; arXiv 1503.02531)."""

from typing import Annotated

from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.nn import functional as F

from factor_transfer.methods.logits_term import LogitsTerm


def kd_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T² · KL(softmax(z_T / T) ‖ softmax(z_S / T))``, the mean of the batch (section 2).

    Example:
        >>> import torch
        >>> from factor_transfer import kd_loss
        >>> logits = torch.randn(4, 10)
        >>> kd_loss(logits + 1, logits, temperature=4.0).round(decimals=4).abs()
        tensor(0.)

    Args:
        student: logits (B, K); gradient flows into them.
        teacher: logits (B, K).
        temperature: T; a higher one shows more of the unlikely classes.

    Returns:
        0-d. A constant added to a sample's logits changes nothing.
    """
    log_student = F.log_softmax(student.float() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


class KD(LogitsTerm):
    """The student's soft answers follow the teacher's: ``(1 - alpha) * CE + alpha * kd_loss``.

    Example:
        >>> import torch
        >>> from factor_transfer import KD, Distillation, build_model
        >>> teacher, student = build_model("resnet20", 10), build_model("resnet8", 10)
        >>> method = Distillation(student, teacher, {"kd": KD(alpha=0.5)})
        >>> losses = method(torch.randn(4, 3, 32, 32), torch.tensor([3, 7, 3, 0]))
        >>> sorted(losses)
        ['accuracy', 'loss', 'loss_ce', 'loss_kd']

    Args:
        temperature: T. 4 is usual for CIFAR (Tian, Krishnan, Isola 2020, and after them most comparisons).
        alpha: share of the soft answers; the cross-entropy's is the rest. Likewise.
    """

    def __init__(
        self, *, temperature: Annotated[float, Gt(0)] = 4.0, alpha: Annotated[float, Ge(0), Le(1)] = 0.9
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.weight, self.cross_entropy = alpha, 1 - alpha

    def distance(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Of logits (B, K), 0-d."""
        return kd_loss(student, teacher, self.temperature)
