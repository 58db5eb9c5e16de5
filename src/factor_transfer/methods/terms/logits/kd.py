"""KD (Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015; arXiv 1503.02531)."""

from typing import Annotated

from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.nn import functional as F

from factor_transfer.methods.ranges import within_ranges
from factor_transfer.methods.shapes import check_logits
from factor_transfer.methods.terms.logits.term import LogitsTerm


@within_ranges
def kd_loss(student: Tensor, teacher: Tensor, temperature: Annotated[float, Gt(0)]) -> Tensor:
    """The distillation loss ``T² · KL(softmax(z_T / T) ‖ softmax(z_S / T))``, averaged over the batch (section 2).

    Example:
        >>> import torch
        >>> from factor_transfer import kd_loss
        >>> logits = torch.randn(4, 10)
        >>> kd_loss(logits + 1, logits, temperature=4.0).round(decimals=4).abs()
        tensor(0.)

    Args:
        student: the student's logits (B, K). They receive the gradient.
        teacher: the teacher's logits (B, K).
        temperature: the temperature T, above 0. A higher one gives more weight to unlikely classes.

    Returns:
        The loss, 0-d. It does not change if a constant is added to a sample's logits.

    Raises:
        InputError: if the shapes differ or are not (B, K), or the temperature is not above 0.
    """
    check_logits("kd_loss", student, teacher)
    log_student = F.log_softmax(student.float() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


class KD(LogitsTerm):
    """The student's softened probabilities follow the teacher's: ``(1 - alpha) * CE + alpha * kd_loss``.

    Example:
        >>> import torch
        >>> from factor_transfer import KD, Distillation, build_model
        >>> teacher, student = build_model("resnet20", 10), build_model("resnet8", 10)
        >>> method = Distillation(student, teacher, {"kd": KD(alpha=0.5)})
        >>> losses = method(torch.randn(4, 3, 32, 32), torch.tensor([3, 7, 3, 0]))
        >>> sorted(losses)
        ['accuracy', 'loss', 'loss_ce', 'loss_kd']

    Args:
        temperature: the temperature T of both networks' probabilities. 4 is usual for CIFAR (Tian, Krishnan, Isola
            2020, and most comparisons since).
        alpha: the weight of the distillation loss; that of the cross-entropy is ``1 - alpha``. The default is that of
            the same comparisons.
    """

    title = "KD"

    def __init__(
        self, *, temperature: Annotated[float, Gt(0)] = 4.0, alpha: Annotated[float, Ge(0), Le(1)] = 0.9
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.weight, self.cross_entropy = alpha, 1 - alpha

    def distance(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """The loss between the networks' logits (B, K), 0-d. The labels are not used."""
        return kd_loss(student, teacher, self.temperature)
