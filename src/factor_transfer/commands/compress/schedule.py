"""How long each stage is trained in the time that there is."""

import math
from dataclasses import dataclass

from factor_transfer.errors import InputError

# More epochs than these are of no use: as many as show the networks so many images, within bounds.
_MOST_IMAGES, _MOST = 3_000_000, (60, 200)
# With fewer than these a network has not begun to learn: epochs, and steps.
_LEAST, _LEAST_STEPS = 5, 150
_PLANNED = 0.9  # the share of the time that is planned, since a machine is not always equally fast
_GOOD = 30  # epochs; where a larger size of the images leaves fewer, a smaller size is better
_PARAPHRASER = 3, 3, 30  # one of its epochs for so many of the student's, but at least and at most so many
_FINE_TUNING = 3, 3, 30  # the same of a teacher that has been trained elsewhere


@dataclass(frozen=True)
class Costs:
    """What was measured.

    Attributes:
        teacher_s: seconds of an epoch of the teacher; 0 if it is not trained.
        paraphraser_s: seconds of an epoch of the paraphraser.
        student_s: seconds of an epoch of the student with its teacher.
        alone_s: seconds of an epoch of the student alone.
        once_s: seconds of what comes once: reading the pictures, the test, the export, the report.
        memory_mb: of the stage that needs most, in megabytes.
        disk_mb: of what is left in the folder, in megabytes.
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
    """How long each stage is trained.

    Attributes:
        teacher: epochs of the teacher; 0 if it is not trained.
        paraphraser: epochs of the paraphraser.
        student: epochs of the student, and of the student alone.
    """

    teacher: int
    paraphraser: int
    student: int

    def seconds(self, costs: Costs) -> dict[str, float]:
        """The seconds of each stage, in the order in which they come."""
        return {
            "teacher": self.teacher * costs.teacher_s,
            "paraphraser": self.paraphraser * costs.paraphraser_s,
            "student": self.student * costs.student_s,
            "student alone": self.student * costs.alone_s,
            "reading, test, export and report": costs.once_s,
        }


def is_roomy(epochs: Epochs, images: int) -> bool:
    """Whether there are as many epochs as make a larger size of the images worth its cost."""
    return epochs.student >= min(_GOOD, most_epochs(images))


def most_epochs(images: int) -> int:
    """More epochs than these do not help a student that learns from so many training images."""
    fewest, most = _MOST
    return min(most, max(fewest, _MOST_IMAGES // images))


def least_epochs(images: int, batch_size: int) -> int:
    """With fewer epochs than these a network that sees so many training images has not begun to learn."""
    return min(most_epochs(images), max(_LEAST, math.ceil(_LEAST_STEPS * batch_size / images)))


def plan_epochs(costs: Costs, minutes: float, spent_s: float, images: int, batch_size: int, fine_tuned: bool) -> Epochs:
    """As many epochs as fit into the time.

    The teacher is trained for twice as many as the student, as far as that is of use: a student learns more from a
    teacher that is better than it would be alone.

    Args:
        costs: what was measured.
        minutes: the time for everything.
        spent_s: seconds of it that are over.
        images: the number of training images.
        batch_size: of all stages.
        fine_tuned: whether the teacher starts from trained weights, and so needs fewer.

    Raises:
        InputError: the time is too short for any network to learn something; it says how long it would have to be.
    """
    most, least = most_epochs(images), least_epochs(images, batch_size)

    def needed(epochs: int) -> float:
        """Minutes, rounded up to tenths."""
        stages_s = sum(_epochs(epochs, most, costs, fine_tuned).seconds(costs).values())
        return math.ceil((spent_s + stages_s) / _PLANNED / 6) / 10

    if needed(least) > minutes:
        raise InputError(
            f"--minutes {minutes:g} is too short for {images:,} training images on this device: to train the "
            f"student for {least} epochs, the least that makes sense, takes about {needed(least):g} minutes, and the "
            f"{most} epochs that are the most that does take {needed(most):g}. Give --minutes {needed(least):g} or more"
        )
    longest = max(epochs for epochs in range(least, most + 1) if needed(epochs) <= minutes)
    return _epochs(longest, most, costs, fine_tuned)


def shorten(epochs: Epochs, costs: Costs, slower: float, left_s: float, least: int) -> Epochs:
    """The epochs of what comes behind the teacher, where the device has become slower than it was measured to be.

    Args:
        epochs: as planned.
        costs: as measured.
        slower: how many times as long as planned the teacher took.
        left_s: seconds that are left for the rest.
        least: see ``least_epochs``.

    Returns:
        As many epochs as fit into what is left, but no more than planned, and no fewer than ``least``.
    """

    def needed(student: int) -> float:
        later = Epochs(0, _share(student, _PARAPHRASER), student)
        return slower * sum(later.seconds(costs).values())

    fitting = [student for student in range(least, epochs.student) if needed(student) <= left_s]
    if needed(epochs.student) <= left_s or least >= epochs.student:
        return epochs
    student = max(fitting, default=least)
    return Epochs(epochs.teacher, _share(student, _PARAPHRASER), student)


def _epochs(student: int, most: int, costs: Costs, fine_tuned: bool) -> Epochs:
    teacher = 0 if not costs.teacher_s else _share(student, _FINE_TUNING) if fine_tuned else min(2 * student, most)
    return Epochs(teacher, _share(student, _PARAPHRASER), student)


def _share(epochs: int, share: tuple[int, int, int]) -> int:
    of, least, most = share
    return min(most, max(least, round(epochs / of)))
