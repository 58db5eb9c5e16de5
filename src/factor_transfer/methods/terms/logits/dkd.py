"""DKD (Zhao, Cui, Song, Qiu, Liang: Decoupled Knowledge Distillation, CVPR 2022; arXiv 2203.08679)."""

from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from factor_transfer.errors import InputError
from factor_transfer.methods.ranges import within_ranges
from factor_transfer.methods.shapes import check_logits
from factor_transfer.methods.terms.logits.kd import kd_loss
from factor_transfer.methods.terms.logits.term import LogitsTerm


@within_ranges
def dkd_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    alpha: Annotated[float, Ge(0)],
    beta: Annotated[float, Ge(0)],
    temperature: Annotated[float, Gt(0)],
) -> Tensor:
    """The decoupled distillation loss ``T² * (alpha * TCKD + beta * NCKD)``, averaged over the batch (equation 7).

    TCKD is the KL divergence between the networks' probabilities of the labelled class and of all other classes
    together. NCKD is the KL divergence between their probabilities of the other classes, without the labelled one.

    Example:
        >>> import torch
        >>> from factor_transfer import dkd_loss
        >>> logits, labels = torch.randn(4, 10), torch.tensor([3, 7, 3, 0])
        >>> dkd_loss(logits, logits, labels, alpha=1.0, beta=8.0, temperature=4.0).round(decimals=4).abs()
        tensor(0.)

    Args:
        student: the student's logits (B, K), K at least 2. They receive the gradient.
        teacher: the teacher's logits (B, K).
        labels: the classes of the images, int64 (B,).
        alpha: the weight of TCKD, at least 0.
        beta: the weight of NCKD, at least 0.
        temperature: the temperature T, above 0.

    Returns:
        The loss, 0-d. It does not change if a constant is added to a sample's logits or if classes are reordered.

    Raises:
        InputError: if shapes do not fit, there is only one class, or a weight or the temperature is out of range.
    """
    check_logits("dkd_loss", student, teacher)
    if labels.shape != student.shape[:1]:
        raise InputError(
            f"dkd_loss needs one class per image, but the labels have shape {tuple(labels.shape)} and the logits "
            f"{tuple(student.shape)}"
        )
    if student.shape[1] < 2:
        raise InputError(f"dkd_loss needs logits of two or more classes, but they have shape {tuple(student.shape)}")
    column = torch.arange(student.shape[1] - 1, device=labels.device)
    non_target = column + (column >= labels[:, None]).long()  # (B, K - 1): all classes but the labelled one

    def split(logits: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of (labelled class, all others together), (B, 2), and of each other class, (B, K - 1)."""
        scaled = logits.float() / temperature
        rest = scaled.gather(1, non_target)
        return torch.cat([scaled.gather(1, labels[:, None]), rest.logsumexp(1, keepdim=True)], 1), rest

    (student_binary, student_rest), (teacher_binary, teacher_rest) = split(student), split(teacher)
    loss = alpha * kd_loss(student_binary, teacher_binary, 1.0) + beta * kd_loss(student_rest, teacher_rest, 1.0)
    return temperature**2 * loss


class DKD(LogitsTerm):
    """The student's softened probabilities follow the teacher's, in two parts with separate weights.

    The defaults are those of the authors' code (mdistiller) for CIFAR-100, which tunes ``beta`` for each pair of
    networks, from 0.5 to 8. Their code for ImageNet uses ``temperature`` 1, ``beta`` 0.5 and one epoch of warm-up.

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
        alpha: the weight of TCKD, the part of the labelled class.
        beta: the weight of NCKD, the part of the other classes.
        temperature: the temperature T of both networks' probabilities.
        warmup_epochs: the number of epochs in which the weight rises linearly to its full size.
    """

    title = "DKD"
    needs_labels = True

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
        """The loss between the networks' logits (B, K), 0-d; labels are int64 (B,)."""
        return dkd_loss(student, teacher, labels, self.alpha, self.beta, self.temperature)
