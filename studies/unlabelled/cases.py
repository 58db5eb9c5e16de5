"""The comparisons of the study: how many labels there are, who trained the teacher, and which images are used."""

import json
from dataclasses import dataclass
from pathlib import Path

METHODS = ("student", "kd", "at", "factor", "factor+kd")
SEEDS = 5
IMAGES = 60_000  # the training images of Fashion-MNIST
_BATCH, _STEPS = 128, 1485  # of a student: three passes over 59,400 images, 120 per batch


@dataclass(frozen=True)
class Case:
    """One comparison of all methods over all seeds.

    Attributes:
        labels: the number of labelled images.
        own_teacher: whether the teacher is trained on these images; otherwise it is trained on all labels.
        unlabelled: whether the other training images are used, without their labels.
    """

    labels: int
    own_teacher: bool = False
    unlabelled: bool = True

    @property
    def name(self) -> str:
        """The name of its record, such as ``"600-labels-own-teacher-alone"``."""
        return f"{self.labels}-labels{'-own-teacher' * self.own_teacher}{'-labelled-alone' * (not self.unlabelled)}"

    @property
    def is_reference(self) -> bool:
        """Whether this is the comparison with all labels."""
        return self.labels == IMAGES

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that are compared. A student alone never uses unlabelled images, so it is trained once."""
        return ("student", "kd", "factor") if self.is_reference else METHODS

    @property
    def settings(self) -> list[str]:
        """The changes of the recipe, without the teacher's weights. All students take about as many steps."""
        if self.is_reference:
            return []
        per_epoch = -(-self.labels // _BATCH)
        few = [f"data.labelled={self.labels / IMAGES:g}"]
        if not self.unlabelled:
            few = [f"data.limit={self.labels}", f"student.epochs={round(_STEPS / per_epoch)}", "paraphraser.epochs=60"]
        if self.own_teacher:  # as many steps as a student takes, in batches of half the size
            few.append(f"teacher.epochs={round(_STEPS * 64 / self.labels)}")
        return few


def given_teacher(weights: Path) -> str:
    """The change of the recipe that takes the teacher's weights from a file, in place of training it."""
    return f'teacher={{model="resnet20", args={{width=8}}, tap="layer3", weights={json.dumps(str(weights))}}}'


# The most informative ones first.
CASES = [
    Case(IMAGES),
    Case(600),
    Case(600, unlabelled=False),
    Case(3000),
    Case(3000, unlabelled=False),
    Case(600, own_teacher=True),
    Case(600, own_teacher=True, unlabelled=False),
    Case(3000, own_teacher=True),
    Case(3000, own_teacher=True, unlabelled=False),
]
