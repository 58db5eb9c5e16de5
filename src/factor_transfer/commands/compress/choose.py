"""The choice of image size, teacher, student, batch size and learning rate for a folder of pictures."""

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

# Teacher and student have the same width and differ in depth, which is where Factor Transfer gains most. A CPU trains
# the pair of studies/cifar10, a GPU the pairs of the paper for CIFAR and ImageNet.
_ON_CPU = "resnet20", "resnet8"
_ON_GPU = {"small": ("resnet56", "resnet20"), "large": ("resnet34", "resnet18")}
_LARGE = 96  # the smallest image size, in pixels, for networks whose first layers reduce the resolution

# The teacher for a given student, and below the student for a given teacher: of the same family and width.
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

# The weight decay by the number of training images (below each limit): the fewer, the stronger. Of 1,080 images of
# CIFAR-10 in 39 epochs, 0.003 and a learning rate of 0.1 gave ResNet-8 53.2 % and ResNet-20 53.3 % on 3,000 other
# training images; 0.0005 and 0.056 gave them 49.4 % and 52.6 %, and ResNet-20 51.3 % with 0.1 (one seed each).
_WEIGHT_DECAYS = (4_000, 0.003), (20_000, 0.001), (math.inf, 0.0005)

# The terms of the student's loss by the number of training images (below each limit). For many images these are Factor
# Transfer and KD, see studies/cifar10; for 5,760 images, Factor Transfer alone, see studies/fashion_mnist. With 1,080
# images of CIFAR-10 in 20 epochs, a beta of 100 gave +2.8 points on 2,500 other training images, and +0.8 with KD; a
# beta of 500 gave +0.7, and -0.4 with KD (one seed).
_TRANSFERS: tuple[tuple[float, dict[str, dict[str, float]]], ...] = (
    (4_000, {"factor": {"beta": 100}}),
    (20_000, {"factor": {"beta": 300}}),
    (math.inf, {"factor": {"beta": 500}, "kd": {"alpha": 0.9, "temperature": 4}}),
)
# KD, which is added where most images have no labels, see studies/unlabelled. With 360 labelled images of Fashion-MNIST
# and 2,600 without labels, it added +0.97 ± 0.60 points to Factor Transfer on 2,500 other training images; an alpha of
# 0.9 and a temperature of 4 added +0.64 ± 1.38 (three seeds, 95 % intervals).
_KD = {"alpha": 0.5, "temperature": 2}

# The sizes that images may be scaled to, largest first, by device type.
_SIZES = {"cpu": (64, 32), "cuda": (224, 128, 64, 32)}


@dataclass(frozen=True)
class ChosenNetwork:
    """A teacher or a student.

    Attributes:
        model: the name of the network.
        args: the settings of the network.
        weights: the initial weights: a file, or ``"pretrained"``; ``None`` for random weights.
        trained: whether the network is trained; otherwise, its weights are used unchanged.
        size: the height and width of the images that its weights were trained on, if known.
    """

    model: str
    args: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    trained: bool = True
    size: int | None = None

    def optimization(self, images: int, batch_size: int) -> tuple[str, float, float]:
        """The optimiser, the peak learning rate, which grows with the batch size up to 64, and the weight decay.

        Args:
            images: the number of training images.
            batch_size: the batch size.
        """
        name, rate, decay = "sgd", 0.1, next(value for limit, value in _WEIGHT_DECAYS if images < limit)
        if self.weights is not None:
            name, rate, decay = "adamw", 0.0003, 0.01
        elif is_external(self.model):
            name, rate, decay = "adamw", 0.001, 0.01
        return name, float(f"{rate * min(max(batch_size / 32, 0.25), 2):.2g}"), decay


@dataclass(frozen=True)
class Choice:
    """The networks, image size and batch size of a recipe.

    Attributes:
        size: height and width of the images.
        teacher: the teacher.
        student: the student.
        batch_size: the batch size of all stages.
        transfer: the terms that the student learns from in addition to the labels, and their settings.
    """

    size: int
    teacher: ChosenNetwork
    student: ChosenNetwork
    batch_size: int
    transfer: Mapping[str, Mapping[str, float]]


def parse_student(name: str) -> ChosenNetwork:
    """The student that is given with ``--student``.

    Args:
        name: the name of a built-in or external network.

    Raises:
        InputError: the name is unknown.
    """
    return ChosenNetwork(_check_name("student", name))


def parse_teacher(text: str) -> ChosenNetwork:
    """The teacher that is given with ``--teacher``.

    Args:
        text: the name of a built-in network, which is trained; ``timm:NAME`` or another network of a zoo, which is
            fine-tuned from the zoo's weights; or ``NAME=FILE``, a built-in or external network and its trained
            weights.

    Raises:
        InputError: the name is unknown, the file does not exist, or a file is given without the network's name.
    """
    name, equals, file = text.partition("=")
    if not equals:
        if text not in MODELS and not is_external(text) and Path(text).exists():
            raise InputError(
                f"--teacher {text} is a file, which does not name its network; give both, such as "
                f"--teacher resnet18={text}"
            )
        model = _check_name("teacher", text)
        return ChosenNetwork(model, weights="pretrained" if model.partition(":")[0] in ZOOS else None)
    path = Path(file)
    if not path.is_file():
        raise InputError(f"there is no file of weights {file or '(none)'}; --teacher takes NAME, or NAME=FILE")
    model, weights = _check_name("teacher", name), str(path.resolve())
    stage = artefact.find(path.parent) if path.name in artefact.STATES else None
    recorded = stage.record.get("model") if stage is not None else None
    if stage is None or recorded is None or recorded["name"] != model:
        return ChosenNetwork(model, weights=weights, trained=False)
    args = {key: value for key, value in recorded.items() if key not in ("name", "num_classes", "in_channels")}
    image = stage.record.get("image")
    return ChosenNetwork(model, args, weights, trained=False, size=image[1] if image else None)


def sizes(pictures: Pictures, device: str, teacher: ChosenNetwork | None) -> list[int]:
    """The sizes that the images may be scaled to, the largest first.

    Args:
        pictures: the pictures; their own sizes are the limit, since enlarged images cost more without showing more.
        device: the device type: ``"cpu"``, ``"cuda"`` …
        teacher: the given teacher, if any. If it is not trained, the size that it was trained on is used.
    """
    if teacher is not None and teacher.size is not None:
        return [teacher.size]
    standard, side = _SIZES.get(device, _SIZES["cuda"]), pictures.sides[1]
    if side < standard[-1]:
        return [side]
    fitting = [size for size in standard if size <= side]
    largest = side - side % 8
    return [largest, *fitting] if fitting[0] < largest < standard[0] else fitting


def choose_networks(
    size: int, device: str, teacher: ChosenNetwork | None, student: ChosenNetwork | None
) -> tuple[ChosenNetwork, ChosenNetwork]:
    """The teacher and the student for images of a size.

    Args:
        size: height and width of the images.
        device: the device type: ``"cpu"``, ``"cuda"`` …
        teacher: the given teacher, if any.
        student: the given student, if any.
    """
    pair = _ON_CPU if device == "cpu" else _ON_GPU["large" if size >= _LARGE else "small"]
    if teacher is None:
        teacher = ChosenNetwork(pair[0] if student is None else _TEACHERS.get(student.model, pair[0]))
    if student is None:
        same_width = {key: value for key, value in teacher.args.items() if key == "width"}
        student = ChosenNetwork(_STUDENTS[teacher.model], same_width) if teacher.model in _STUDENTS else None
    if teacher.weights is None:
        teacher = _with_stem(teacher, size)
    return teacher, _with_stem(student or ChosenNetwork(pair[1]), size)


def is_less_deep(teacher: str, student: str) -> bool:
    """Whether a student is known to be of the teacher's family and less deep."""
    return _STUDENTS.get(teacher) == student or _TEACHERS.get(student) == teacher


def choose_batch_size(images: int, device: str) -> int:
    """The batch size for a number of training images.

    Batch norm computes its statistics per batch, so the size is chosen such that the last batch of an epoch, which has
    the remaining images, is as full as possible.

    Args:
        images: the number of training images.
        device: the device type: ``"cpu"``, ``"cuda"`` …
    """
    base = 32 if images < 4000 else 64 if images < 20000 else 128
    if device != "cpu" and images >= 4000:
        base *= 2
    base = min(base, max(8, images // 16))
    candidates = range(min(base, max(1, images // 2)), min(base * 3 // 2, max(1, images // 2)) + 1)
    return max(candidates, key=lambda size: ((images % size or size) / size, -size))


def choose_transfer(labelled: int, unlabelled: int = 0) -> Mapping[str, Mapping[str, float]]:
    """The terms for a number of training images, and their settings.

    Args:
        labelled: the number of images with labels.
        unlabelled: the number of images without labels.
    """
    terms = next(terms for limit, terms in _TRANSFERS if labelled + unlabelled < limit)
    return {**terms, "kd": terms.get("kd", _KD)} if unlabelled > labelled else terms


def _with_stem(network: ChosenNetwork, size: int) -> ChosenNetwork:
    """The network with the stem for a size of images, if it is a built-in network with a choice of stems."""
    if network.model not in MODELS or "stem" not in settings(MODELS[network.model]):
        return network
    stem = "imagenet" if size >= _LARGE else "cifar"
    return replace(network, args={"stem": stem, **network.args})


def _check_name(role: str, name: str) -> str:
    return name if is_external(name) else choose(role, name, MODELS)
