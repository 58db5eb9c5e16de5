"""A student alone, from the folder that ``factor-transfer package`` wrote: neither teacher nor translator is needed."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from factor_transfer.checkpoint import load_into, read_json, read_weights, sha256
from factor_transfer.errors import InputError
from factor_transfer.models import Normalize, build_model, check_said

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


def load_student(folder: str | Path, said: Collection[str] = ()) -> Student:
    """The student that a folder holds, in evaluation mode.

    Args:
        folder: that ``factor-transfer package`` wrote, or a copy of it.
        said: names of networks, ``package.module:callable``, whose code may be run for it; without, the package's own
            and the zoos' are.

    Raises:
        InputError: it is no such folder, or damaged; or its network is made by code that was not named.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder} has no {CONFIG}; give a folder that `factor-transfer package` wrote")
    config, weights = read_json(folder / CONFIG), folder / WEIGHTS
    try:
        check_said(str(config["model"]["name"]), said, folder)
        student = assemble(config)
        expected = config["weights_sha256"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder / CONFIG} is damaged: {error}") from error
    if sha256(weights) != expected:
        raise InputError(f"{weights} is damaged, or another student's: {CONFIG} beside it has another SHA-256")
    load_into(student.model, read_weights(weights), weights)
    return student.eval()


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
