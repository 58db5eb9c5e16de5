"""The number of epochs of each stage that fit into the given time."""

import math
from dataclasses import dataclass

from factor_transfer.errors import InputError

# The largest useful number of epochs: those in which a network sees this many images, within these bounds.
_MOST_IMAGES, _MOST = 3_000_000, (60, 200)
# The smallest numbers of epochs and steps after which a network has started to learn.
_LEAST, _LEAST_STEPS = 5, 150
_PLANNED = 0.9  # the planned share of the time; the rest is reserve, since the speed of a machine varies
_WORTH = 1.25  # the students are trained for longer than planned if this many times the epochs fit into the time left
_GOOD = 30  # if a size of the images leaves fewer epochs, a smaller size is better
# (divisor, minimum, maximum) of the number of epochs, relative to the student's, of the paraphraser and of a pretrained
# teacher.
_PARAPHRASER = 3, 3, 30
_FINE_TUNING = 3, 3, 30


@dataclass(frozen=True)
class Costs:
    """The measured costs of the stages.

    Attributes:
        teacher_s: the seconds per epoch of the teacher; 0 if it is not trained.
        paraphraser_s: the seconds per epoch of the paraphraser.
        student_s: the seconds per epoch of the student with its teacher.
        alone_s: the seconds per epoch of the student alone.
        once_s: the seconds of reading the pictures, testing, export and report together.
        memory_mb: the memory of the stage that needs most, in megabytes.
        disk_mb: the size of the results on disk, in megabytes.
    """

    teacher_s: float
    paraphraser_s: float
    student_s: float
    alone_s: float
    once_s: float
    memory_mb: float
    disk_mb: float


@dataclass(frozen=True)
class Epochs:
    """The number of epochs of each stage.

    Attributes:
        teacher: the epochs of the teacher; 0 if it is not trained.
        paraphraser: the epochs of the paraphraser.
        student: the epochs of the student, with the teacher and alone.
    """

    teacher: int
    paraphraser: int
    student: int

    def seconds(self, costs: Costs) -> dict[str, float]:
        """The duration of each stage in seconds, in their order."""
        return {
            "teacher": self.teacher * costs.teacher_s,
            "paraphraser": self.paraphraser * costs.paraphraser_s,
            "student": self.student * costs.student_s,
            "student alone": self.student * costs.alone_s,
            "reading, test, export and report": costs.once_s,
        }


def is_roomy(epochs: Epochs, images: int) -> bool:
    """Whether there are enough epochs for this size of the images; otherwise, a smaller size is better."""
    return epochs.student >= min(_GOOD, most_epochs(images))


def most_epochs(images: int) -> int:
    """The largest useful number of epochs for a number of training images."""
    fewest, most = _MOST
    return min(most, max(fewest, _MOST_IMAGES // images))


def least_epochs(images: int, batch_size: int) -> int:
    """The number of epochs after which a network has started to learn, for a number of training images."""
    return min(most_epochs(images), max(_LEAST, math.ceil(_LEAST_STEPS * batch_size / images)))


def plan_epochs(
    costs: Costs,
    minutes: float,
    spent_s: float,
    images: int,
    batch_size: int,
    fine_tuned: bool,
    unlabelled: int = 0,
) -> Epochs:
    """The largest number of epochs that fits into the time.

    The teacher uses its images twice as often as the student, up to the largest useful number of epochs: a student
    learns more from a teacher that is better than the student would be alone.

    Args:
        costs: the measured costs.
        minutes: the time for everything.
        spent_s: the time spent so far, in seconds.
        images: the number of training images.
        batch_size: the batch size of all stages.
        fine_tuned: whether the teacher starts from trained weights, so that fewer epochs are enough for it.
        unlabelled: the number of images without labels, which are part of an epoch of the later stages.

    Raises:
        InputError: the time is too short to learn anything; the message gives the time that is needed.
    """
    together = images + unlabelled
    most, least = most_epochs(together), least_epochs(together, batch_size)
    most_teacher, longer = most_epochs(images), together / images

    def planned(epochs: int) -> Epochs:
        teacher = _share(epochs, _FINE_TUNING) if fine_tuned else min(round(2 * epochs * longer), most_teacher)
        return Epochs(teacher if costs.teacher_s else 0, _share(epochs, _PARAPHRASER), epochs)

    def needed(epochs: int) -> float:
        """The minutes for this many epochs, rounded up to tenths."""
        stages_s = sum(planned(epochs).seconds(costs).values())
        return math.ceil((spent_s + stages_s) / _PLANNED / 6) / 10

    if needed(least) > minutes:
        raise InputError(
            f"--minutes {minutes:g} is too short for {together:,} training images on this device: training the student "
            f"for {least} epochs, the smallest useful number, takes about {needed(least):g} minutes, and for {most} "
            f"epochs, the largest useful number, {needed(most):g}. Give --minutes {needed(least):g} or more"
        )
    longest = max(epochs for epochs in range(least, most + 1) if needed(epochs) <= minutes)
    return planned(longest)


def replan(epochs: Epochs, costs: Costs, slower: float, left_s: float, least: int, most: int) -> Epochs:
    """The epochs of the stages after the teacher for the time that is left.

    There are fewer than planned if these no longer fit, since the device has become slower. There are more if the
    teacher took so little time that considerably more fit, at the measured costs and with a reserve.

    Args:
        epochs: the planned epochs.
        costs: the measured costs.
        slower: the ratio of the teacher's actual and planned time, at least 1.
        left_s: the remaining time in seconds.
        least: the smallest useful number of epochs, see ``least_epochs``.
        most: the largest useful number of epochs, see ``most_epochs``.
    """

    def fitting(candidates: range, time_s: float) -> list[int]:
        return [
            student
            for student in candidates
            if slower * sum(Epochs(0, _share(student, _PARAPHRASER), student).seconds(costs).values()) <= time_s
        ]

    planned = epochs.student
    if fitting(range(planned, planned + 1), left_s):
        student = max(fitting(range(planned, most + 1), _PLANNED * left_s), default=planned)
        student = student if student >= _WORTH * planned else planned
    else:
        student = max(fitting(range(least, planned), left_s), default=min(least, planned))
    return epochs if student == planned else Epochs(epochs.teacher, _share(student, _PARAPHRASER), student)


def _share(epochs: int, share: tuple[int, int, int]) -> int:
    divisor, least, most = share
    return min(most, max(least, round(epochs / divisor)))
