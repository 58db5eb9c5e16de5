"""DKD (Zhao, Cui, Song, Qiu, Liang: Decoupled Knowledge Distillation, CVPR 2022; arXiv 2203.08679)."""

from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from factor_transfer.methods.logits_term import LogitsTerm
from factor_transfer.methods.terms.kd import kd_loss


def dkd_loss(student: Tensor, teacher: Tensor, labels: Tensor, alpha: float, beta: float, temperature: float) -> Tensor:
    """``alpha * TCKD + beta * NCKD`` (equation 7), each times T², the mean of the batch.

    TCKD is KL between the two networks' probabilities of (the labelled class, any other); NCKD is KL between their
    probabilities of the other classes, the labelled one left out.

    Example:
        >>> import torch
        >>> from factor_transfer import dkd_loss
        >>> logits, labels = torch.randn(4, 10), torch.tensor([3, 7, 3, 0])
        >>> dkd_loss(logits, logits, labels, alpha=1.0, beta=8.0, temperature=4.0).round(decimals=4).abs()
        tensor(0.)

    Args:
        student: logits (B, K), K at least 2; gradient flows into them.
        teacher: logits (B, K).
        labels: int64 (B,).
        alpha: weight of TCKD.
        beta: weight of NCKD.
        temperature: T.

    Returns:
        0-d. A constant added to a sample's logits changes nothing, nor does the order of the classes.
    """
    column = torch.arange(student.shape[1] - 1, device=labels.device)
    others = column + (column >= labels[:, None]).long()  # (B, K - 1): all classes but the labelled one

    def parts(logits: Tensor) -> tuple[Tensor, Tensor]:
        scaled = logits.float() / temperature
        rest = scaled.gather(1, others)
        return torch.cat([scaled.gather(1, labels[:, None]), rest.logsumexp(1, keepdim=True)], 1), rest

    (own_target, own_rest), (other_target, other_rest) = parts(student), parts(teacher)
    loss = alpha * kd_loss(own_target, other_target, 1.0) + beta * kd_loss(own_rest, other_rest, 1.0)
    return temperature**2 * loss


class DKD(LogitsTerm):
    """The student follows the teacher's soft answers, in two parts whose weights are apart.

    The defaults are the authors' (mdistiller) for CIFAR-100; there ``beta`` is tuned from pair to pair, 0.5 to 8. Their
    code for ImageNet has ``temperature`` 1, ``beta`` 0.5 and one epoch of warm-up.

    Example:
        >>> import torch
        >>> from factor_transfer import Distillation, DKD, Pair, Side, build_model
        >>> teacher, student = build_model("resnet20", 10), build_model("resnet8", 10)
        >>> images, labels = torch.randn(4, 3, 32, 32), torch.tensor([3, 7, 3, 0])
        >>> pair = Pair(Side(teacher, ["layer3"], images), Side(student, ["layer3"], images))
        >>> method = Distillation(student, teacher, {"dkd": DKD.between(pair)})
        >>> losses = method(images, labels)
        >>> sorted(losses)
        ['accuracy', 'loss', 'loss_ce', 'loss_dkd']

    Args:
        alpha: weight of the target class's part.
        beta: weight of the other classes' part.
        temperature: T.
        warmup_epochs: in so many epochs the weight rises to its full size.
    """

    def __init__(
        self,
        *,
        alpha: Annotated[float, Ge(0)] = 1.0,
        beta: Annotated[float, Ge(0)] = 8.0,
        temperature: Annotated[float, Gt(0)] = 4.0,
        warmup_epochs: Annotated[float, Ge(0)] = 20.0,
    ) -> None:
        super().__init__()
        self.alpha, self.beta, self.temperature, self.warmup_epochs = alpha, beta, temperature, warmup_epochs

    def distance(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Of logits (B, K), 0-d."""
        return dkd_loss(student, teacher, labels, self.alpha, self.beta, self.temperature)
