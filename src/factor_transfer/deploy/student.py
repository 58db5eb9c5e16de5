"""A student alone, by its name in the zoo or by its folder: neither teacher nor translator is needed."""

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from factor_transfer.errors import InputError, suggest
from factor_transfer.files import load_into, read_json, read_weights, sha256
from factor_transfer.models import Normalize, build_model, permit
from factor_transfer.pipeline import artefact
from factor_transfer.pipeline.artefact import RECORD
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
    record, weights, expected = _described(folder)
    try:
        announce(permit([record["model"]], trusted_code, folder))
        student = assemble(record)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"what {folder} says of its network is damaged: {error}") from error
    if sha256(weights) != expected:
        raise InputError(f"{weights} is damaged, or another student's: the record beside it has another SHA-256")
    load_into(student.model, read_weights(weights), weights)
    return student.eval()


def _described(folder: Path) -> tuple[dict[str, Any], Path, str]:
    """What a folder says of its network, the file of its weights, and their SHA-256."""
    for file, weights in ((CONFIG, WEIGHTS), (RECORD, artefact.WEIGHTS)):
        if (folder / file).is_file():
            record = read_json(folder / file)
            if not isinstance(record, dict) or not isinstance(record.get("weights_sha256"), str):
                raise InputError(f"{folder / file} is damaged, or its stage is not finished")
            if "model" not in record:
                raise InputError(f"{folder} holds a {record.get('stage')}, not a network that classifies images")
            return record, folder / weights, record["weights_sha256"]
    known = zoo.entries()
    hint = suggest(str(folder), known) if known else ""
    raise InputError(
        f"{folder} has no {CONFIG}; give a folder that `factor-transfer package` wrote, one of a finished stage, or a "
        f"name of `factor-transfer show zoo`{hint}"
    )


def assemble(record: dict[str, Any]) -> Student:
    """The network that a record describes, with new weights.

    Args:
        record: ``model``, ``classes``, ``mean``, ``std``; ``reused_classifier`` of a student of SimKD; ``image``.

    Raises:
        KeyError, TypeError, ValueError: it is damaged.
    """
    model = build_model(**record["model"])
    if record.get("reused_classifier") is not None:
        from factor_transfer.methods import ReusedClassifier  # this student alone has a part of its teacher

        model = ReusedClassifier.rebuild(model, **record["reused_classifier"])
    image = record.get("image")
    prepare = Normalize(record["mean"], record["std"])
    return Student(model, prepare, tuple(record["classes"]), tuple(image) if image else None)
