"""DIST (Huang, You, Wang, Qian, Xu: Distillation from a Stronger Teacher, NeurIPS 2022; arXiv 2205.10536)."""

from typing import Annotated

from annotated_types import Ge, Gt
from torch import Tensor
from torch.nn import functional as F

from factor_transfer.methods.logits_term import LogitsTerm


def pearson_distance(one: Tensor, other: Tensor) -> Tensor:
    """``1 - ρ`` of the rows of two matrices (R, D), the mean over rows; 0-d, 0..2 (equation 6).

    The scale and the shift of a row do not matter. A constant row correlates with nothing: its distance is 1.
    """
    one, other = (rows - rows.mean(1, keepdim=True) for rows in (one, other))
    return 1 - F.cosine_similarity(one, other, dim=1).mean()


class DIST(LogitsTerm):
    """The student's probabilities correlate with the teacher's, image by image and class by class (equation 10).

    ``T² * (beta * inter + gamma * intra)``, where ``inter`` is the Pearson distance between the two networks'
    probabilities of an image's classes, and ``intra`` that between their probabilities of a class over the batch.

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
        beta: weight of the images' part. 2 is the paper's for classification; the authors' code has 1 in the loss and
            leaves the rest to the recipe.
        gamma: weight of the classes' part. Likewise.
        temperature: T of both networks' probabilities. 4 is the paper's for CIFAR-100; for ImageNet it has 1. The
            factor T² is the later implementations', which keeps the gradient's size as T changes.
    """

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
        """Of logits (B, K), 0-d."""
        own, other = (F.softmax(logits.float() / self.temperature, dim=1) for logits in (student, teacher))
        inter, intra = pearson_distance(own, other), pearson_distance(own.T, other.T)
        return self.temperature**2 * (self.beta * inter + self.gamma * intra)
