"""A student in a folder: saving it, and loading it without teacher and translator."""

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from factor_transfer.errors import InputError, first_line, suggest
from factor_transfer.files import sha256, write_json
from factor_transfer.models import Normalize, permit
from factor_transfer.models.inference import eval_mode
from factor_transfer.models.outputs import logits_of
from factor_transfer.pipeline import artefact
from factor_transfer.pipeline.artefact import RECORD
from factor_transfer.pipeline.records import PackageRecord, StageRecord, check_record, read_record, rebuild
from factor_transfer.pipeline.weights import zoo
from factor_transfer.state_dicts import read_weights, save_weights
from factor_transfer.versions import __version__

Announce = Callable[[Iterable[str | Mapping[str, Any]]], None]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_ROUNDING = 0.01  # of the largest logit: bfloat16, and TF32 on a GPU, have three digits


class Student(nn.Module):
    """A trained network with its preprocessing.

    Args:
        model: the network: normalised images (B, C, H, W) -> logits (B, K).
        prepare: the module that normalises raw images.
        classes: the names of the K classes, in the order of the logits.
        image: the shape (C, H, W) of the training images; ``None`` if it was not recorded.
    """

    def __init__(
        self, model: nn.Module, prepare: Normalize, classes: tuple[str, ...], image: tuple[int, ...] | None
    ) -> None:
        super().__init__()
        self.model, self.prepare, self.classes, self.image = model, prepare, classes, image

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits (B, K) of raw images, uint8 (B, C, H, W) in 0..255.

        Raises:
            InputError: if the images are floating-point, such as those of torchvision's ``ToTensor``, in 0..1.
        """
        if images.is_floating_point():
            raise InputError(
                f"a student normalises raw images itself, uint8 in 0..255, but got {images.dtype}; images in 0..1 "
                "become these by images.mul(255).round().to(torch.uint8)"
            )
        logits: Tensor = self.model(self.prepare(images))
        return logits


def save_student(
    student: nn.Module,
    folder: str | Path,
    model: str,
    *,
    classes: Sequence[str],
    image: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    **args: Any,
) -> None:
    """Save a network that was trained in a loop of your own, with everything that is needed to use it.

    ``load_student`` and ``factor-transfer predict`` read the folder. The network is built again from its name and
    arguments and compared with ``student``, so that wrong ones are noticed here.

    Example:
        >>> from factor_transfer import build_model, load_student, save_student
        >>> student = build_model("resnet8", num_classes=3, width=8)  # and train it
        >>> statistics = {"mean": [0.49, 0.48, 0.45], "std": [0.25, 0.24, 0.26]}
        >>> names = ["cat", "dog", "horse"]
        >>> save_student(student, "student", "resnet8", width=8, classes=names, image=(3, 32, 32), **statistics)
        >>> load_student("student").classes
        ('cat', 'dog', 'horse')

    Args:
        student: the trained network: normalised images (B, C, H, W) -> logits (B, K).
        folder: the folder to write ``config.json`` and ``model.safetensors`` into. Files of these names are replaced.
        model: the name by which ``build_model`` builds the network, such as ``"resnet8"``, ``"timm:resnet18"`` or, for
            a network of your own, ``"package.module:callable"``.
        classes: the names of the K classes, in the order of the logits.
        image: the shape (C, H, W) of the images.
        mean: the mean by which each channel was normalised, for pixels from 0 to 1; zeros if it was not.
        std: the standard deviation by which each channel was normalised; ones if it was not.
        args: the arguments of ``build_model`` besides name, classes and channels, such as ``width``.

    Raises:
        InputError: if the arguments do not fit each other, or do not describe ``student``.
    """
    from factor_transfer.methods import ReusedClassifier  # only a training needs the methods, which loading is without

    record = {
        "model": {"name": model, "num_classes": len(classes), "in_channels": len(mean), **args},
        "reused_classifier": student.record if isinstance(student, ReusedClassifier) else None,
        "classes": classes,
        "image": image,
        "mean": mean,
        "std": std,
    }
    config = _config(record, weights_sha256="")  # of the file, which is written once all else is valid
    check_record(config, PackageRecord, "save_student")
    name, state = f"build_model({model!r}, ...)", student.state_dict()
    _check_same_logits(student, rebuild(config, state, name, "of the student"), image, name)
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_student(Path(folder), record, state)


def write_student(folder: Path, record: Mapping[str, Any], state: Mapping[str, Tensor], **more: Any) -> dict[str, Any]:
    """Write the two files that ``load_student`` reads, and return the content of ``config.json``.

    Args:
        folder: an existing folder.
        record: the record of the network, see ``NetworkRecord``.
        state: the weights.
        more: further entries of ``config.json``.
    """
    save_weights(folder / WEIGHTS, state)
    config = _config(record, weights_sha256=sha256(folder / WEIGHTS), **more)
    write_json(folder / CONFIG, config)
    return config


def _config(record: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    image = record.get("image")
    return {
        "library": "factor-transfer",
        "version": __version__,
        "model": record["model"],
        "reused_classifier": record.get("reused_classifier"),
        "classes": list(record["classes"]),
        "image": None if image is None else list(image),
        "mean": list(record["mean"]),
        "std": list(record["std"]),
        **more,
    }


def _check_same_logits(student: nn.Module, rebuilt: nn.Module, image: Sequence[int], name: str) -> None:
    """Check that a network that was built again has the same logits as the student."""
    first = next(student.parameters())
    images = torch.randn(2, *image, generator=torch.Generator().manual_seed(0)).to(first.device, first.dtype)
    rebuilt.to(first.device, first.dtype)
    try:
        with eval_mode(student), eval_mode(rebuilt):
            trained, computed = logits_of(student(images)), logits_of(rebuilt(images))
    except RuntimeError as error:
        size = " x ".join(map(str, image))
        raise InputError(f"save_student: the student does not accept images of {size}: {first_line(error)}") from error
    if trained.shape != computed.shape or (trained - computed).abs().max() > _ROUNDING * trained.abs().max():
        raise InputError(
            f"{name} describes a network that has other logits than the student, with the same weights; give the "
            "arguments that the student was built with"
        )


def load_student(
    source: str | Path, trusted_code: Collection[str] = (), *, said: Collection[str] | None = None
) -> Student:
    """Load a trained network with its preprocessing, in evaluation mode.

    Example:
        >>> from factor_transfer import load_student
        >>> student = load_student("cifar10/resnet20-resnet8/teacher")  # a network of the zoo
        >>> student.classes[:3]
        ('airplane', 'automobile', 'bird')

    Args:
        source: a name that ``factor-transfer show zoo`` lists, a folder that ``factor-transfer package`` wrote, or the
            folder of a finished stage.
        trusted_code: the code outside this package that may be run to build the network, as
            ``package.module:callable``. The networks of this package and of the model zoos need none.
        said: the name of ``trusted_code`` up to version 0.1. Deprecated; it will be removed in the next release.

    Raises:
        InputError: if there is no such network, it is damaged, or it is built by code that is not trusted.
    """
    if said is not None:
        warnings.warn("load_student(said=…) is deprecated; use trusted_code=…", DeprecationWarning, stacklevel=2)
        trusted_code = [*trusted_code, *said]
    return open_student(Path(source), trusted_code)


def open_student(source: Path, trusted_code: Collection[str], announce: Announce = lambda _: None) -> Student:
    """Load a student like ``load_student``, and report its record first.

    Args:
        source: the source, see ``load_student``.
        trusted_code: the trusted code, see ``load_student``.
        announce: a function that is called with the network's record before it is built, since that may run code
            outside this package.
    """
    folder = source
    if not folder.is_dir() and str(source) in zoo.entries():
        folder = zoo.find(str(source)).folder
    record, record_path, weights = _read_folder(folder)
    announce(permit([record["model"]], trusted_code, folder))
    if sha256(weights) != record["weights_sha256"]:
        raise InputError(
            f"{weights} is damaged, or belongs to another student: its SHA-256 differs from the one in "
            f"{record_path.name} beside it"
        )
    return assemble(record, rebuild(record, read_weights(weights), record_path, weights)).eval()


def _read_folder(folder: Path) -> tuple[dict[str, Any], Path, Path]:
    """The record of the network in a folder, and the paths of the record and of the weights."""
    if (folder / CONFIG).is_file():
        record = read_record(folder / CONFIG, PackageRecord).model_dump(exclude_unset=True)
        return record, folder / CONFIG, folder / WEIGHTS
    if (folder / RECORD).is_file():
        stage = read_record(folder / RECORD, StageRecord).model_dump(exclude_unset=True)
        if not stage["finished"]:
            raise InputError(f"{folder} is not finished; the command that started its training resumes it")
        if "model" not in stage:
            raise InputError(f"{folder} contains a {stage.get('stage')}, not an image classifier")
        return stage, folder / RECORD, folder / artefact.WEIGHTS
    known = zoo.entries()
    hint = suggest(str(folder), known) if known else ""
    raise InputError(
        f"{folder} has no {CONFIG}; give a folder that `factor-transfer package` wrote, the folder of a finished "
        f"stage, or a name that `factor-transfer show zoo` lists{hint}"
    )


def assemble(record: Mapping[str, Any], model: nn.Module) -> Student:
    """A student from a network and its record.

    Args:
        record: the validated record, with ``classes``, ``mean``, ``std`` and ``image``.
        model: the network that the record describes.
    """
    image = record.get("image")
    prepare = Normalize(record["mean"], record["std"])
    return Student(model, prepare, tuple(record["classes"]), tuple(image) if image else None)
