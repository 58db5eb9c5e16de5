"""What networks answer to the test images: class by class, mistaken for what, how sure, and where the student errs."""

from typing import NamedTuple

import torch
from torch import Tensor

from factor_transfer.report.metrics import Reliability, reliability


class Answers(NamedTuple):
    """A network's answers to the test images.

    Attributes:
        logits: (N, K), float32.
        labels: int64 (N,).
    """

    logits: Tensor
    labels: Tensor

    @property
    def predictions(self) -> Tensor:
        """The likeliest class of each image, int64 (N,)."""
        return self.logits.argmax(1)

    @property
    def right(self) -> Tensor:
        """Whether it is the image's own, bool (N,)."""
        return self.predictions == self.labels

    def confusion(self) -> Tensor:
        """How many images of each class (row) are taken for each class (column), int64 (K, K)."""
        count = self.logits.shape[1]
        return torch.bincount(self.labels * count + self.predictions, minlength=count**2).reshape(count, count)

    def class_accuracy(self) -> Tensor:
        """The share of each class's images that are recognised, in percent, (K,); NaN of a class without images."""
        confusion = self.confusion().double()
        return 100 * confusion.diagonal() / confusion.sum(1)

    def reliability(self) -> Reliability:
        """How often the network is right, by how sure it is."""
        return reliability(self.logits.softmax(1).max(1).values, self.right)


class Missed(NamedTuple):
    """An image that the teacher recognises and the student does not.

    Attributes:
        place: among the test images.
        label: the right class, which the teacher names.
        answer: the student's class.
        teacher_sure: the teacher's probability of its answer, 0..1.
        student_sure: the student's probability of its own.
    """

    place: int
    label: int
    answer: int
    teacher_sure: float
    student_sure: float


def missed(teacher: Answers, student: Answers, most: int) -> tuple[int, list[Missed]]:
    """Images that only the teacher recognises.

    Returns:
        How many there are, and of them those where the teacher is surest, at most ``most``.
    """
    indices = (teacher.right & ~student.right).nonzero().flatten()
    sure, other = (one.logits[indices].softmax(1).max(1).values for one in (teacher, student))
    order = sure.sort(descending=True, stable=True).indices[:most]
    found = [
        Missed(
            int(indices[place]),
            int(teacher.labels[indices[place]]),
            int(student.predictions[indices[place]]),
            float(sure[place]),
            float(other[place]),
        )
        for place in order.tolist()
    ]
    return len(indices), found
