"""The predictions of networks for the test images: by class, confusions, calibration, and the errors of the student."""

from typing import NamedTuple

import torch
from torch import Tensor

from factor_transfer.report.metrics import Reliability, reliability


class Answers(NamedTuple):
    """The outputs of a network for the test images.

    Attributes:
        logits: the logits, float32 (N, K).
        labels: the labels, int64 (N,).
    """

    logits: Tensor
    labels: Tensor

    @property
    def predictions(self) -> Tensor:
        """The predicted class of each image, int64 (N,)."""
        return self.logits.argmax(1)

    @property
    def correct(self) -> Tensor:
        """Whether each prediction is correct, bool (N,)."""
        return self.predictions == self.labels

    def confusion(self) -> Tensor:
        """The confusion matrix, int64 (K, K): the number of images of each class (row) by prediction (column)."""
        count = self.logits.shape[1]
        return torch.bincount(self.labels * count + self.predictions, minlength=count**2).reshape(count, count)

    def class_accuracy(self) -> Tensor:
        """The accuracy of each class, in percent, (K,); NaN for a class without images."""
        confusion = self.confusion().double()
        return 100 * confusion.diagonal() / confusion.sum(1)

    def reliability(self) -> Reliability:
        """The accuracy of the network as a function of its confidence."""
        return reliability(self.logits.softmax(1).max(1).values, self.correct)


class Missed(NamedTuple):
    """An image that the teacher recognises and the student does not.

    Attributes:
        number: the index of the image among the test images.
        label: the true class, which the teacher predicts.
        answer: the class that the student predicts.
        teacher_sure: the teacher's probability of its prediction, in 0..1.
        student_sure: the student's probability of its prediction, in 0..1.
    """

    number: int
    label: int
    answer: int
    teacher_sure: float
    student_sure: float


def missed(teacher: Answers, student: Answers, most: int) -> tuple[int, list[Missed]]:
    """The images that only the teacher recognises.

    Args:
        teacher: the outputs of the teacher.
        student: the outputs of the student.
        most: the largest number of images to return.

    Returns:
        The number of all these images, and those for which the teacher's confidence is highest.
    """
    indices = (teacher.correct & ~student.correct).nonzero().flatten()
    teacher_sure, student_sure = (one.logits[indices].softmax(1).max(1).values for one in (teacher, student))
    order = teacher_sure.sort(descending=True, stable=True).indices[:most]
    images = [
        Missed(
            int(indices[rank]),
            int(teacher.labels[indices[rank]]),
            int(student.predictions[indices[rank]]),
            float(teacher_sure[rank]),
            float(student_sure[rank]),
        )
        for rank in order.tolist()
    ]
    return len(indices), images
