"""What the records say that people can read, and edit: read where they enter, and refused where they are damaged.

``stage.json`` of a stage, ``summary.json`` of a run, ``config.json`` of a package, ``.holder.json`` of a work dir;
``export.json`` is in ``export.record``. What a record says besides is kept as it is.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import nn

from factor_transfer.errors import InputError, first_line, shown
from factor_transfer.files import State, check_layers, load_into, read_json
from factor_transfer.models import MODELS, build_model
from factor_transfer.models.normalize import check_statistics

Size = Annotated[int, Field(ge=1, lt=2**31)]
Count = Annotated[int, Field(ge=0)]
Percent = Annotated[float, Field(ge=0, le=100)]
Pixels = Annotated[int, Field(ge=1, le=4096)]  # height or width; more would fill the memory with one image


class Record(BaseModel):
    """A JSON object: types are not guessed, numbers are finite, other keys are kept."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, allow_inf_nan=False)


R = TypeVar("R", bound=Record)


def read_record(path: Path, kind: type[R], mend: str = "") -> R:
    """Read a record.

    Args:
        path: of a JSON file.
        kind: what it must say.
        mend: a clause that says what to do where it is damaged.

    Raises:
        InputError: it cannot be read, or is damaged: file, key and fault are named.
    """
    content = read_json(path)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        faults = error.errors()
    lines = [_fault(fault) for fault in faults[:3]] + (["…"] if faults[3:] else [])
    raise InputError(f"{path} is damaged: {'; '.join(lines)}{f'; {mend}' if mend else ''}")


def _fault(fault: Any) -> str:
    """A fault in words: its key, what is wrong with it and what was given."""
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
    """What a network is built from: ``build_model`` takes it, its own arguments are what else it says."""

    name: str
    num_classes: Size
    in_channels: Size

    @model_validator(mode="after")
    def _alone(self) -> Self:
        if "pretrained" in (self.model_extra or {}):
            raise ValueError("'pretrained' is no argument of a network whose weights lie beside it")
        return self


class ReusedClassifierRecord(Record):
    """What ``ReusedClassifier.rebuild`` takes: a student of SimKD has its teacher's classifier."""

    model_config = ConfigDict(extra="forbid")

    tap: str
    student_channels: Size
    teacher_channels: Size
    reduction: Size
    classes: Size
    bias: bool
    idle: list[str]


class NetworkRecord(Record):
    """A trained network.

    Attributes:
        model: what it is built from.
        classes: names, in the order of the logits.
        image: (C, H, W) of the images it was trained on, as far as that was written down.
        mean: of each channel, 0..1.
        std: of each channel, 0..1.
        reused_classifier: of a student of SimKD.
        weights_sha256: of the file of its weights.
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
            raise ValueError(f"classes has {count} names, the network {self.model.num_classes} logits")
        if self.reused_classifier is not None and count != self.reused_classifier.classes:
            raise ValueError(f"classes has {count} names, the classifier {self.reused_classifier.classes} logits")
        if len(set(self.classes)) < count:
            raise ValueError("classes has a name twice")
        if len(self.mean) != channels or len(self.std) != channels:
            raise ValueError(
                f"mean and std have {len(self.mean)} and {len(self.std)} values, the images {channels} channels"
            )
        if self.image is not None and self.image[0] != channels:
            raise ValueError(f"image has {self.image[0]} channels, the network takes {channels}")
        check_statistics(self.mean, self.std)
        return self


class StageRecord(Record):
    """``stage.json``: of a stage that is under way, what it is made from; of a finished one, all of it."""

    finished: bool
    inputs: dict[str, Any]
    stage: str = ""
    epoch: Annotated[int, Field(ge=0)] | None = None
    validation: dict[str, float] | None = None
    seconds: Annotated[float, Field(ge=0)] | None = None
    in_channels: dict[str, Size] | None = None
    weights_sha256: str | None = None
    last_sha256: str | None = None
    versions: dict[str, str] | None = None
    machine: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if not self.finished:
            return self
        present = self.model_fields_set
        needed = ["versions", "machine"]  # a cache has no more
        if self.stage == "paraphraser":
            needed += ["weights_sha256", "in_channels"]
        elif "model" in (self.model_extra or {}):
            NetworkRecord.model_validate(self.model_dump(exclude_unset=True))
            needed += ["weights_sha256", "seconds"]
        absent = [key for key in needed if key not in present or getattr(self, key) is None]
        if absent:
            raise ValueError(f"{absent[0]} is missing of a finished stage")
        taps = self.inputs.get("tap")
        if self.stage == "paraphraser" and isinstance(taps, str) and taps.split(", ") != [*(self.in_channels or ())]:
            raise ValueError(f"in_channels is of other taps than {taps}, which inputs name")
        return self


class PackageRecord(NetworkRecord):
    """``config.json`` of a package."""


class Figures(Record):
    """What ``summary.json`` says of one network."""

    top1: Percent
    top5: Percent
    parameters: Count
    macs: Count
    bytes: Count
    weights: str


class Summary(Record):
    """``summary.json`` of a run."""

    method: str
    teacher: Figures | None
    student: Figures
    baseline: Figures | None = None


class Holder(Record):
    """``.holder.json``: which process has a work dir."""

    process: int
    host: str
    since: str
    command: str
    token: str | None = None


def rebuild(record: Mapping[str, Any], state: State, place: Path, weights: Path) -> nn.Module:
    """The network that a checked record describes, with its weights.

    Args:
        record: ``model`` and, of a student of SimKD, ``reused_classifier``.
        state: its weights.
        place: of the record, for messages.
        weights: of the state's file, likewise.

    Raises:
        InputError: it cannot be built, or the weights do not fit.
    """
    if record["model"]["name"] in MODELS:
        # Shapes alone, first: a network that the weights do not fit may be too large for the memory.
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            check_layers(_build(record, place), state, weights)
    model = _build(record, place)
    load_into(model, state, weights)
    return model


def _build(record: Mapping[str, Any], place: Path) -> nn.Module:
    try:
        model = build_model(**record["model"])
        if record.get("reused_classifier") is not None:
            from factor_transfer.methods import ReusedClassifier  # this student alone has a part of its teacher

            model = ReusedClassifier.rebuild(model, **record["reused_classifier"])
        return model
    except (MemoryError, InputError) as error:
        raise InputError(f"{place} describes a network that cannot be built: {error}") from error
    except Exception as error:  # whatever a network does with arguments that it was not made for
        raise InputError(f"{place} describes a network that cannot be built: {first_line(error)}") from error


def check_logits(logits: torch.Tensor, classes: Sequence[str], place: object) -> None:
    """See that a network says what its record promises.

    Args:
        logits: (N, K).
        classes: K names.
        place: of the network, for the message.

    Raises:
        InputError: there are others than K, or some are not finite.
    """
    if logits.ndim != 2 or logits.shape[1] != len(classes):
        raise InputError(f"{place} returns {list(logits.shape[1:])} logits an image, and has {len(classes)} classes")
    if not logits.isfinite().all():
        raise InputError(f"{place} returns logits that are not finite: its weights or its mean and std are damaged")
