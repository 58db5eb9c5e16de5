"""What to train on a folder of pictures: image size, teacher and student, taps, batch size, learning rate."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from factor_transfer.commands.compress.look import Pictures
from factor_transfer.errors import InputError, choose
from factor_transfer.models import MODELS, is_external
from factor_transfer.models.zoos import ZOOS
from factor_transfer.pipeline import artefact
from factor_transfer.settings import settings

# Teacher and student of one width that differ in depth, which is where Factor Transfer gains most. A processor trains
# the pair of studies/cifar10; a GPU the pairs that the paper has for CIFAR and ImageNet.
_ON_CPU = "resnet20", "resnet8"
_ON_GPU = {"small": ("resnet56", "resnet20"), "large": ("resnet34", "resnet18")}
_LARGE = 96  # pixels; images of at least this size are seen by networks that begin by making them smaller

# Of a teacher or student that a person names, the other one: the same family and width.
_TEACHERS = {
    "resnet8": "resnet20",
    "resnet14": "resnet32",
    "resnet20": "resnet56",
    "resnet26": "resnet56",
    "resnet32": "resnet110",
    "resnet44": "resnet110",
    "resnet56": "resnet110",
    "resnet8x4": "resnet32x4",
    "resnet18": "resnet34",
    "wrn_16_1": "wrn_40_1",
    "wrn_16_2": "wrn_40_2",
    "vgg8": "vgg13",
    "vgg11": "vgg16",
    "vgg13": "vgg19",
}
_STUDENTS = {"resnet14": "resnet8", "resnet50": "resnet18", **{big: small for small, big in _TEACHERS.items()}}
_STUDENTS |= {"resnet110": "resnet32", "resnet56": "resnet20", "vgg16": "vgg8", "vgg19": "vgg8"}

# The fewer the training images (so many, at most), the stronger the weight decay. Of 1,080 images of CIFAR-10 in 39
# epochs, 0.003 and a learning rate of 0.1 gave ResNet-8 53.2 % and ResNet-20 53.3 % on 3,000 other training images;
# 0.0005 and 0.056 gave them 49.4 % and 52.6 %, and ResNet-20 51.3 % with 0.1 (one seed each).
_WEIGHT_DECAYS = (4_000, 0.003), (20_000, 0.001), (math.inf, 0.0005)

# What the student learns from, by the number of training images (so many, at most). Of many it is Factor Transfer and
# KD, see studies/cifar10; of 5,760 Factor Transfer alone, see studies/fashion_mnist. Of 1,080 images of CIFAR-10 in 20
# epochs, a beta of 100 gave +2.8 points on 2,500 other training images, with KD +0.8; a beta of 500 +0.7, with KD -0.4
# (one seed).
_TRANSFERS: tuple[tuple[float, dict[str, dict[str, float]]], ...] = (
    (4_000, {"factor": {"beta": 100}}),
    (20_000, {"factor": {"beta": 300}}),
    (math.inf, {"factor": {"beta": 500}, "kd": {"alpha": 0.9, "temperature": 4}}),
)

# Sizes that images are scaled to, largest first.
_SIZES = {"cpu": (64, 32), "cuda": (224, 128, 64, 32)}


@dataclass(frozen=True)
class ChosenNetwork:
    """A teacher or a student.

    Attributes:
        model: its name.
        args: its settings.
        weights: what it starts from; ``None`` for random weights.
        trained: whether it is trained here; if not, it is taken as its weights are.
        size: the size of the images that its weights were trained on, where that is known.
    """

    model: str
    args: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    trained: bool = True
    size: int | None = None

    def optimization(self, images: int, batch_size: int) -> tuple[str, float, float]:
        """Optimiser, highest learning rate and weight decay; the rate grows with the batch, up to 64 images.

        Args:
            images: the number of training images.
            batch_size: the images of a step.
        """
        name, rate, decay = "sgd", 0.1, next(value for most, value in _WEIGHT_DECAYS if images < most)
        if self.weights is not None:
            name, rate, decay = "adamw", 0.0003, 0.01
        elif is_external(self.model):
            name, rate, decay = "adamw", 0.001, 0.01
        return name, float(f"{rate * min(max(batch_size / 32, 0.25), 2):.2g}"), decay


@dataclass(frozen=True)
class Choice:
    """What is trained.

    Attributes:
        size: height and width of the images.
        teacher: the teacher.
        student: the student.
        batch_size: of all stages.
        transfer: the terms that the student learns from beside the labels, and their settings.
    """

    size: int
    teacher: ChosenNetwork
    student: ChosenNetwork
    batch_size: int
    transfer: Mapping[str, Mapping[str, float]]


def parse_student(name: str) -> ChosenNetwork:
    """The student that a person asks for.

    Args:
        name: a network of ours, or one from elsewhere.

    Raises:
        InputError: an unknown name.
    """
    return ChosenNetwork(_known("student", name))


def parse_teacher(text: str) -> ChosenNetwork:
    """The teacher that a person asks for.

    Args:
        text: the name of a network of ours, which is trained; ``timm:NAME`` or another network of a zoo, whose weights
            are trained on; or ``NAME=FILE``, a network of ours or from elsewhere with its trained weights.

    Raises:
        InputError: an unknown name, a file that does not exist, or a file without the network's name.
    """
    name, equals, file = text.partition("=")
    if not equals:
        if text not in MODELS and not is_external(text) and Path(text).exists():
            raise InputError(
                f"--teacher {text} is a file, which does not say what network it is of; give both, such as "
                f"--teacher resnet18={text}"
            )
        known = _known("teacher", text)
        return ChosenNetwork(known, weights="pretrained" if known.partition(":")[0] in ZOOS else None)
    path = Path(file)
    if not path.is_file():
        raise InputError(f"there is no file of weights {file or '(none)'}; --teacher takes NAME, or NAME=FILE")
    known, weights = _known("teacher", name), str(path.resolve())
    stage = artefact.find(path.parent) if path.name in artefact.STATES else None
    model = stage.record.get("model") if stage is not None else None
    if stage is None or model is None or model["name"] != known:
        return ChosenNetwork(known, weights=weights, trained=False)
    args = {key: value for key, value in model.items() if key not in ("name", "num_classes", "in_channels")}
    image = stage.record.get("image")
    return ChosenNetwork(known, args, weights, trained=False, size=image[1] if image else None)


def sizes(pictures: Pictures, device: str, teacher: ChosenNetwork | None) -> list[int]:
    """The sizes that the images may be scaled to, the largest first.

    Args:
        pictures: whose own sizes bound them: enlarged images cost more and show nothing new.
        device: ``"cpu"``, ``"cuda"`` …
        teacher: the teacher that a person asks for. One that is not trained wants the size that it was trained on.
    """
    if teacher is not None and teacher.size is not None:
        return [teacher.size]
    usual, side = _SIZES.get(device, _SIZES["cuda"]), pictures.sides[1]
    if side < usual[-1]:
        return [side]
    fitting = [size for size in usual if size <= side]
    own = side - side % 8
    return [own, *fitting] if fitting[0] < own < usual[0] else fitting


def choose_networks(
    size: int, device: str, teacher: ChosenNetwork | None, student: ChosenNetwork | None
) -> tuple[ChosenNetwork, ChosenNetwork]:
    """Teacher and student for images of a size.

    Args:
        size: height and width of the images.
        device: ``"cpu"``, ``"cuda"`` …
        teacher: the teacher that a person asks for, if any.
        student: the student that a person asks for, if any.
    """
    usual = _ON_CPU if device == "cpu" else _ON_GPU["large" if size >= _LARGE else "small"]
    if teacher is None:
        teacher = ChosenNetwork(usual[0] if student is None else _TEACHERS.get(student.model, usual[0]))
    if student is None:
        same_width = {key: value for key, value in teacher.args.items() if key == "width"}
        student = ChosenNetwork(_STUDENTS[teacher.model], same_width) if teacher.model in _STUDENTS else None
    if teacher.weights is None:
        teacher = _with_stem(teacher, size)
    return teacher, _with_stem(student or ChosenNetwork(usual[1]), size)


def choose_batch_size(images: int, device: str) -> int:
    """The images of a step.

    Batch norm measures its statistics in each batch, so the size is chosen such that the last batch, which has the rest
    of the images, is as full as possible.

    Args:
        images: the number of training images.
        device: ``"cpu"``, ``"cuda"`` …
    """
    base = 32 if images < 4000 else 64 if images < 20000 else 128
    if device != "cpu" and images >= 4000:
        base *= 2
    base = min(base, max(8, images // 16))
    candidates = range(min(base, max(1, images // 2)), min(base * 3 // 2, max(1, images // 2)) + 1)
    return max(candidates, key=lambda size: ((images % size or size) / size, -size))


def choose_transfer(images: int) -> Mapping[str, Mapping[str, float]]:
    """The terms for so many training images, and their settings."""
    return next(terms for most, terms in _TRANSFERS if images < most)


def _with_stem(network: ChosenNetwork, size: int) -> ChosenNetwork:
    """A network of ours with the stem that suits a size of images, where it has a choice of stems."""
    if network.model not in MODELS or "stem" not in settings(MODELS[network.model]):
        return network
    stem = "imagenet" if size >= _LARGE else "cifar"
    return replace(network, args={"stem": stem, **network.args})


def _known(role: str, name: str) -> str:
    return name if is_external(name) else choose(role, name, MODELS)
