"""The comparisons of the study: how many labels there are, who trained the teacher, and which images are used."""

import json
from dataclasses import dataclass
from pathlib import Path

_BATCH = 128  # of a student


@dataclass(frozen=True)
class DataSet:
    """A data set of the study, with what all of its cases share.

    Attributes:
        name: its name in a recipe, and of the study's recipe for it.
        title: its name for readers.
        networks: who teaches whom, for readers.
        images: the number of training images.
        methods: the methods that are compared.
        seeds: the number of students of each method.
        steps: about how many steps a student takes.
        labelled_alone: the changes of the recipe where only the labelled images are used, beside the number of epochs.
        pretrained: whether the recipe names the weights of the teacher that has learned from all labels; the study
            trains it otherwise.
    """

    name: str
    title: str
    networks: str
    images: int
    methods: tuple[str, ...]
    seeds: int
    steps: int
    labelled_alone: tuple[str, ...]
    pretrained: bool = False

    @property
    def recipe(self) -> Path:
        """The recipe of its cases."""
        return Path(__file__).parent / f"{self.name}.toml"


FASHION_MNIST = DataSet(
    name="fashion-mnist",
    title="Fashion-MNIST",
    networks="A ResNet-20 of width 8 teaches a ResNet-8 of width 8",
    images=60_000,
    methods=("student", "kd", "at", "factor", "factor+kd"),
    seeds=5,
    steps=1485,  # three passes over 59,400 images, 120 per batch
    labelled_alone=("paraphraser.epochs=60",),
)
CIFAR10 = DataSet(
    name="cifar10",
    title="CIFAR-10",
    networks="The zoo's ResNet-20 teaches a ResNet-8",
    images=50_000,
    methods=("student", "kd", "factor", "factor+kd"),
    seeds=3,
    steps=3128,  # eight passes over 45,000 images, 115 or 116 per batch
    labelled_alone=("paraphraser.epochs=20", "cache.views=40"),  # as many different views of the fewer images
    pretrained=True,
)
DATA_SETS = (FASHION_MNIST, CIFAR10)


@dataclass(frozen=True)
class Case:
    """One comparison of all methods over all seeds.

    Attributes:
        data: the data set.
        labels: the number of labelled images.
        own_teacher: whether the teacher is trained on these images; otherwise it is trained on all labels.
        unlabelled: whether the other training images are used, without their labels.
    """

    data: DataSet
    labels: int
    own_teacher: bool = False
    unlabelled: bool = True

    @property
    def name(self) -> str:
        """The name of its record, such as ``"600-labels-own-teacher-labelled-alone"``."""
        data = "" if self.data is FASHION_MNIST else f"{self.data.name}-"
        teacher, images = "-own-teacher" * self.own_teacher, "-labelled-alone" * (not self.unlabelled)
        return f"{data}{self.labels}-labels{teacher}{images}"

    @property
    def title(self) -> str:
        """What is special about it, for readers, but for the images that it uses."""
        teacher = "the same labels" if self.own_teacher else "all labels"
        return f"{self.labels:,} labels; the teacher learned from {teacher}"

    @property
    def is_reference(self) -> bool:
        """Whether this is the comparison with all labels."""
        return self.labels == self.data.images

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that are compared."""
        return ("student", "kd", "factor") if self.is_reference else self.data.methods

    @property
    def settings(self) -> list[str]:
        """The changes of the recipe, without the teacher's weights. All students take about as many steps."""
        if self.is_reference:
            return []
        per_epoch = -(-self.labels // _BATCH)
        few = [f"data.labelled={self.labels / self.data.images:g}"]
        if not self.unlabelled:
            epochs = round(self.data.steps / per_epoch)
            few = [f"data.limit={self.labels}", f"student.epochs={epochs}", *self.data.labelled_alone]
        if self.own_teacher:  # as many steps as a student takes, in batches of half the size
            few.append(f"teacher.epochs={round(self.data.steps * 64 / self.labels)}")
        return few


def given_teacher(weights: Path) -> str:
    """The change of Fashion-MNIST's recipe that takes the teacher's weights from a file, in place of training it."""
    return f'teacher={{model="resnet20", args={{width=8}}, tap="layer3", weights={json.dumps(str(weights))}}}'


# The most informative ones first.
CASES = [
    Case(FASHION_MNIST, 60_000),
    Case(FASHION_MNIST, 600),
    Case(FASHION_MNIST, 600, unlabelled=False),
    Case(FASHION_MNIST, 3000),
    Case(FASHION_MNIST, 3000, unlabelled=False),
    Case(FASHION_MNIST, 600, own_teacher=True),
    Case(FASHION_MNIST, 600, own_teacher=True, unlabelled=False),
    Case(FASHION_MNIST, 3000, own_teacher=True),
    Case(FASHION_MNIST, 3000, own_teacher=True, unlabelled=False),
    Case(CIFAR10, 5000),
    Case(CIFAR10, 5000, unlabelled=False),
    Case(CIFAR10, 50_000),
]
