"""Schemas of the JSON records, which people can read and edit: each file is validated when it is read.

``stage.json`` of a stage, ``summary.json`` of a run, ``config.json`` of a package, and ``.holder.json`` of a work dir.
``export.json`` is described in ``export.record``. Keys that a schema does not list are preserved.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import nn

from factor_transfer.errors import InputError, first_line, shown
from factor_transfer.files import read_json
from factor_transfer.models import MODELS, build_model
from factor_transfer.models.normalize import check_statistics
from factor_transfer.state_dicts import State, check_layers, load_into

Size = Annotated[int, Field(ge=1, lt=2**31)]
Count = Annotated[int, Field(ge=0)]
Percent = Annotated[float, Field(ge=0, le=100)]
Pixels = Annotated[int, Field(ge=1, le=4096)]  # height or width; one larger image could fill the memory


class Record(BaseModel):
    """A JSON object with typed keys: values are not converted, numbers must be finite, other keys are preserved."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False)


R = TypeVar("R", bound=Record)


def read_record(path: Path, kind: type[R], remedy: str = "") -> R:
    """Read and validate a record.

    Args:
        path: the JSON file.
        kind: the schema of the record.
        remedy: a clause for the message about a damaged record, with the remedy.

    Raises:
        InputError: if the file cannot be read or is damaged; the message names the file, the key and the fault.
    """
    return check_record(read_json(path), kind, f"{path} is damaged", remedy)


def check_record(content: Any, kind: type[R], subject: str, remedy: str = "") -> R:
    """Validate the content of a record.

    Args:
        content: the content, as JSON represents it.
        kind: the schema of the record.
        subject: the beginning of the message of an error, which the faults follow after a colon.
        remedy: a clause at the end of this message, with the remedy.

    Raises:
        InputError: if a key is missing, or a value is not valid; the message names the key and the fault.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        faults = error.errors()
    lines = [_fault(fault) for fault in faults[:3]] + (["…"] if faults[3:] else [])
    raise InputError(f"{subject}: {'; '.join(lines)}{f'; {remedy}' if remedy else ''}")


def _fault(fault: Any) -> str:
    """The description of a validation error: the key, what is wrong with it, and the value found."""
    key = ".".join(map(str, fault["loc"]))
    if fault["type"] == "missing":
        return f"{key} is missing"
    if fault["type"] == "value_error":
        cause = fault["ctx"]["error"]
        if isinstance(cause, ValidationError):
            return "; ".join(_fault(inner) for inner in cause.errors()[:3])
        return f"{key}: {cause}" if key else str(cause)
    return f"{f'{key}: ' if key else ''}{fault['msg']}, got {shown(fault['input'])}"


class ModelRecord(Record):
    """The arguments of ``build_model`` that build a network; other keys are arguments of the network itself."""

    name: str
    num_classes: Size
    in_channels: Size

    @model_validator(mode="after")
    def _alone(self) -> Self:
        if "pretrained" in (self.model_extra or {}):
            raise ValueError("'pretrained' is not a valid argument of a network whose weights are stored beside it")
        return self


class ReusedClassifierRecord(Record):
    """The arguments of ``ReusedClassifier.rebuild``: a student trained by SimKD contains its teacher's classifier."""

    model_config = ConfigDict(extra="forbid")

    tap: str
    student_channels: Size
    teacher_channels: Size
    reduction: Size
    classes: Size
    bias: bool
    idle: list[str]


class NetworkRecord(Record):
    """The record of a trained network.

    Attributes:
        model: the arguments that build the network.
        classes: the names of the classes, in the order of the logits.
        image: the shape (C, H, W) of the training images; ``None`` if it was not recorded.
        mean: the mean of each channel of the network's input, in 0..1.
        std: the standard deviation of each channel of the network's input, in 0..1.
        reused_classifier: the teacher's classifier in a student trained by SimKD; ``None`` for any other network.
        weights_sha256: the SHA-256 of the weights file, hexadecimal.
    """

    model: ModelRecord
    classes: list[str]
    image: tuple[Size, Pixels, Pixels] | None = Field(default=None, strict=False)
    mean: list[float]
    std: list[float]
    reused_classifier: ReusedClassifierRecord | None = None
    weights_sha256: str

    @model_validator(mode="after")
    def _fits(self) -> Self:
        count, channels = len(self.classes), self.model.in_channels
        if count != self.model.num_classes:
            raise ValueError(f"classes has {count} names, but the network has {self.model.num_classes} logits")
        if self.reused_classifier is not None and count != self.reused_classifier.classes:
            raise ValueError(
                f"classes has {count} names, but the classifier has {self.reused_classifier.classes} logits"
            )
        if len(set(self.classes)) < count:
            raise ValueError("classes contains a name twice")
        if len(self.mean) != channels or len(self.std) != channels:
            raise ValueError(
                f"mean and std have {len(self.mean)} and {len(self.std)} values, but the images have "
                f"{channels} channels"
            )
        if self.image is not None and self.image[0] != channels:
            raise ValueError(f"image has {self.image[0]} channels, but the network takes {channels}")
        check_statistics(self.mean, self.std)
        return self


class StageRecord(Record):
    """The schema of ``stage.json``: an unfinished stage has only its inputs, a finished one has all its keys."""

    finished: bool
    inputs: dict[str, Any]
    stage: str = ""
    epoch: Annotated[int, Field(ge=0)] | None = None
    validation: dict[str, float] | None = None
    seconds: Annotated[float, Field(ge=0)] | None = None
    threads: Size | None = None
    in_channels: dict[str, Size] | None = None
    weights_sha256: str | None = None
    last_sha256: str | None = None
    connectors_sha256: str | None = None
    versions: dict[str, str] | None = None
    machine: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if not self.finished:
            return self
        present = self.model_fields_set
        required = ["versions", "machine"]  # all that a cache records
        if self.stage == "paraphraser":
            required += ["weights_sha256", "in_channels"]
        elif "model" in (self.model_extra or {}):
            NetworkRecord.model_validate(self.model_dump(exclude_unset=True))
            required += ["weights_sha256", "seconds"]
        missing = [key for key in required if key not in present or getattr(self, key) is None]
        if missing:
            raise ValueError(f"{missing[0]} is missing, although the stage is finished")
        taps = self.inputs.get("tap")
        if self.stage == "paraphraser" and isinstance(taps, str) and taps.split(", ") != [*(self.in_channels or ())]:
            raise ValueError(f"in_channels does not list the taps that inputs names: {taps}")
        return self


class PackageRecord(NetworkRecord):
    """The schema of ``config.json``, the record of a package."""


class Figures(Record):
    """The figures of one network in ``summary.json``."""

    top1: Percent
    top5: Percent
    top1_kept: Percent | None = None  # older files lack this figure and the next one
    top1_last: Percent | None = None
    parameters: Count
    macs: Count
    bytes: Count
    weights: str
    weights_sha256: str | None = None  # older files lack it


class Summary(Record):
    """The schema of ``summary.json``, the record of a run."""

    method: str
    teacher: Figures | None
    student: Figures
    baseline: Figures | None = None


class Holder(Record):
    """The schema of ``.holder.json``: the process that holds a work dir."""

    process: int
    host: str
    since: str
    command: str
    token: str | None = None


def rebuild(record: Mapping[str, Any], state: State, place: object, weights: object) -> nn.Module:
    """Build the network that a validated record describes, and load its weights.

    Args:
        record: the record: ``model`` and, for a student trained by SimKD, ``reused_classifier``.
        state: the weights.
        place: the path of the record, or its name, for messages.
        weights: the path of the weights file, or words such as ``"of the student"``, for messages.

    Raises:
        InputError: if the network cannot be built, or the weights do not fit it.
    """
    if record["model"]["name"] in MODELS:
        # Shapes are compared first, without memory: a network that does not fit its weights may be too large to build.
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            check_layers(_build(record, place), state, weights)
    model = _build(record, place)
    load_into(model, state, weights)
    return model


def _build(record: Mapping[str, Any], place: object) -> nn.Module:
    try:
        model = build_model(**record["model"])
        if record.get("reused_classifier") is not None:
            from factor_transfer.methods import ReusedClassifier  # only a student trained by SimKD needs it

            model = ReusedClassifier.rebuild(model, **record["reused_classifier"])
        return model
    except (MemoryError, InputError) as error:
        raise InputError(f"{place} describes a network that cannot be built: {error}") from error
    except Exception as error:  # a network may raise anything for arguments that it does not expect
        raise InputError(f"{place} describes a network that cannot be built: {first_line(error)}") from error


def check_logits(logits: torch.Tensor, classes: Sequence[str], place: object) -> None:
    """Check that a network's logits match the classes in its record.

    Args:
        logits: the logits, (N, K).
        classes: the names of the K classes.
        place: the path of the network, for the message.

    Raises:
        InputError: if the logits have another shape, or are not finite.
    """
    if logits.ndim != 2 or logits.shape[1] != len(classes):
        raise InputError(
            f"{place} returns logits of shape {list(logits.shape[1:])} per image, but has {len(classes)} classes"
        )
    if not logits.isfinite().all():
        raise InputError(f"{place} returns logits that are not finite: its weights, or its mean and std, are damaged")
