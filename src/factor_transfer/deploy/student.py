"""A student alone, by its name in the zoo or by its folder: neither teacher nor translator is needed."""

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from factor_transfer.errors import InputError, suggest
from factor_transfer.files import read_weights, sha256
from factor_transfer.models import Normalize, permit
from factor_transfer.pipeline import artefact
from factor_transfer.pipeline.artefact import RECORD
from factor_transfer.pipeline.records import PackageRecord, StageRecord, read_record, rebuild
from factor_transfer.pipeline.weights import zoo

Announce = Callable[[Iterable[str | Mapping[str, Any]]], None]

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class Student(nn.Module):
    """A trained network with its preprocessing.

    Args:
        model: normalised images (B, C, H, W) -> logits (B, K).
        prepare: turns raw images into such.
        classes: K names, in the order of the logits.
        image: (C, H, W) of the images that it was trained on; ``None`` if that was not written down.
    """

    def __init__(
        self, model: nn.Module, prepare: Normalize, classes: tuple[str, ...], image: tuple[int, ...] | None
    ) -> None:
        super().__init__()
        self.model, self.prepare, self.classes, self.image = model, prepare, classes, image

    def forward(self, images: Tensor) -> Tensor:
        """Raw images uint8 (B, C, H, W), 0..255 -> logits (B, K)."""
        logits: Tensor = self.model(self.prepare(images))
        return logits


def load_student(
    source: str | Path, trusted_code: Collection[str] = (), *, said: Collection[str] | None = None
) -> Student:
    """A trained network, in evaluation mode.

    Example:
        >>> from factor_transfer import load_student
        >>> student = load_student("cifar10/resnet20-resnet8/teacher")  # a network of the zoo
        >>> student.classes[:3]
        ('airplane', 'automobile', 'bird')

    Args:
        source: a name of ``factor-transfer show zoo``; or a folder, which ``factor-transfer package`` wrote or which a
            finished stage left.
        trusted_code: names of networks, ``package.module:callable``, whose code may be run for it; without, the
            package's own and the zoos' are.
        said: what ``trusted_code`` was called up to 0.1; it goes with the next release.

    Raises:
        InputError: there is no such network, or it is damaged; or it is made by code that was not named.
    """
    if said is not None:
        warnings.warn("load_student(said=…) is now called trusted_code=…", DeprecationWarning, stacklevel=2)
        trusted_code = [*trusted_code, *said]
    return open_student(Path(source), trusted_code)


def open_student(source: Path, trusted_code: Collection[str], announce: Announce = lambda _: None) -> Student:
    """See ``load_student``.

    Args:
        source: likewise.
        trusted_code: likewise.
        announce: told what the network's record says of it before it is built, since code from outside may make it.
    """
    folder = source
    if not folder.is_dir() and str(source) in zoo.entries():
        folder = zoo.find(str(source)).folder
    record, place, weights = _described(folder)
    announce(permit([record["model"]], trusted_code, folder))
    if sha256(weights) != record["weights_sha256"]:
        raise InputError(f"{weights} is damaged, or another student's: the record beside it has another SHA-256")
    return assemble(record, rebuild(record, read_weights(weights), place, weights)).eval()


def _described(folder: Path) -> tuple[dict[str, Any], Path, Path]:
    """What a folder says of its network, the file that says it, and that of the weights."""
    if (folder / CONFIG).is_file():
        record = read_record(folder / CONFIG, PackageRecord).model_dump(exclude_unset=True)
        return record, folder / CONFIG, folder / WEIGHTS
    if (folder / RECORD).is_file():
        stage = read_record(folder / RECORD, StageRecord).model_dump(exclude_unset=True)
        if not stage["finished"]:
            raise InputError(f"{folder} is not finished; the command that began it goes on with it")
        if "model" not in stage:
            raise InputError(f"{folder} contains a {stage.get('stage')}, not an image classifier")
        return stage, folder / RECORD, folder / artefact.WEIGHTS
    known = zoo.entries()
    hint = suggest(str(folder), known) if known else ""
    raise InputError(
        f"{folder} has no {CONFIG}; give a folder that `factor-transfer package` wrote, one of a finished stage, or a "
        f"name of `factor-transfer show zoo`{hint}"
    )


def assemble(record: Mapping[str, Any], model: nn.Module) -> Student:
    """A network with what its record says of images and classes.

    Args:
        record: checked; ``classes``, ``mean``, ``std``, ``image``.
        model: that it describes.
    """
    image = record.get("image")
    prepare = Normalize(record["mean"], record["std"])
    return Student(model, prepare, tuple(record["classes"]), tuple(image) if image else None)
