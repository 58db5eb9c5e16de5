"""DIST (Huang, You, Wang, Qian, Xu: Distillation from a Stronger Teacher, NeurIPS 2022; arXiv 2205.10536)."""

from typing import Annotated

from annotated_types import Ge, Gt
from torch import Tensor
from torch.nn import functional as F

from factor_transfer.methods.shapes import check_logits, check_same_shape
from factor_transfer.methods.terms.logits.term import LogitsTerm


def pearson_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """The Pearson distance ``1 - ρ`` between the rows of two matrices (R, D), averaged over rows (equation 6).

    It is 0-d, between 0 and 2, and does not depend on the scale or shift of a row. The distance of a constant row is 1,
    because its correlation is not defined.

    Raises:
        InputError: if the shapes differ.
    """
    check_same_shape("pearson_distance", student, teacher)
    student, teacher = (rows - rows.mean(1, keepdim=True) for rows in (student, teacher))
    return 1 - F.cosine_similarity(student, teacher, dim=1).mean()


class DIST(LogitsTerm):
    """The student's probabilities correlate with the teacher's, for each image and for each class (equation 10).

    The loss is ``T² * (beta * inter + gamma * intra)``, where ``inter`` is the Pearson distance between the networks'
    probabilities of all classes for an image, and ``intra`` is the Pearson distance between their probabilities of a
    class for all images of the batch.

    Example:
        >>> import torch
        >>> from factor_transfer import DIST, Distillation, Pair, Side, build_model
        >>> teacher, student = build_model("resnet20", 10), build_model("resnet8", 10)
        >>> images, labels = torch.randn(4, 3, 32, 32), torch.tensor([3, 7, 3, 0])
        >>> pair = Pair(Side(teacher, ["layer3"], images), Side(student, ["layer3"], images))
        >>> method = Distillation(student, teacher, {"dist": DIST.between(pair)})
        >>> losses = method(images, labels)
        >>> sorted(losses)
        ['accuracy', 'loss', 'loss_ce', 'loss_dist']

    Args:
        beta: the weight of ``inter``. The paper uses 2 for classification; the default of the loss in the authors' code
            is 1.
        gamma: the weight of ``intra``, with the same values in the paper and in the authors' code.
        temperature: the temperature T of both networks' probabilities. The paper uses 4 for CIFAR-100 and 1 for
            ImageNet. The factor T² is that of later implementations; it keeps the size of the gradient as T changes.
    """

    title = "DIST"

    def __init__(
        self,
        *,
        beta: Annotated[float, Ge(0)] = 2.0,
        gamma: Annotated[float, Ge(0)] = 2.0,
        temperature: Annotated[float, Gt(0)] = 4.0,
    ) -> None:
        super().__init__()
        self.beta, self.gamma, self.temperature = beta, gamma, temperature

    def distance(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """The loss between the networks' logits (B, K), 0-d. The labels are not used.

        Raises:
            InputError: if the shapes differ or are not (B, K).
        """
        check_logits("DIST", student, teacher)
        p_student, p_teacher = (F.softmax(logits.float() / self.temperature, dim=1) for logits in (student, teacher))
        inter, intra = pearson_distance(p_student, p_teacher), pearson_distance(p_student.T, p_teacher.T)
        return self.temperature**2 * (self.beta * inter + self.gamma * intra)
