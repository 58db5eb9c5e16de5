"""What ``export.json`` says beside the figures: of what the file was made, what it takes, and where that was."""

import platform
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from factor_transfer.data import Split
from factor_transfer.export.build import ExportOptions
from factor_transfer.export.formats.optional import EXTRAS
from factor_transfer.export.graph import MOST, InputSpec
from factor_transfer.models import macs, parameters
from factor_transfer.models.normalize import check_statistics
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.pipeline.records import Count, Percent, Record, Size
from factor_transfer.versions import OURS, versions

RECORD = "export.json"


class File(Record):
    """Which file a record is of."""

    name: Annotated[str, Field(pattern=r"^[^/\\\x00]+$")]  # one that lies beside the record
    sha256: str
    bytes: Count


class Input(Record):
    """What the file takes, see ``input_record``."""

    dtype: Literal["uint8", "float32"]
    channels: Size
    height: Size
    width: Size
    mean: list[float]
    std: list[float]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(
                f"mean and std have {len(self.mean)} and {len(self.std)} values, the images {self.channels} channels"
            )
        check_statistics(self.mean, self.std)
        return self


class FileRecord(Record):
    """What of ``export.json`` is needed to run the file."""

    file: File
    classes: list[str]
    input: Input

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise ValueError("classes must be names, each once")
        return self


class Owner(Record):
    """Which student a file was made from."""

    fingerprint: str


class OwnerRecord(Record):
    """What of ``export.json`` says whose it is."""

    student: Owner


class Parity(Record):
    """See ``parity.compare``."""

    images: Size
    top1_trained: Percent
    top1_file: Percent
    equal_predictions: Percent
    largest_logit_difference: Annotated[float, Field(ge=0)]


class Costs(Record):
    """See ``worker.probe``."""

    p50_ms: Annotated[float, Field(ge=0)]


class Teacher(Record):
    """What the teacher reaches."""

    top1: Percent


class Machine(Record):
    """Where figures were measured."""

    processor: str


class ExportRecord(FileRecord, OwnerRecord):
    """``export.json``, as far as a package shows it."""

    format: Literal["executorch", "onnx"]
    precision: Literal["float32", "int8"]
    parity: Parity
    costs: Costs
    machine: Machine
    teacher: Teacher | None = None


def network_record(done: Artefact, network: nn.Module, example: Tensor) -> dict[str, Any]:
    """Which network it is, and how large."""
    return {
        "folder": str(done.folder),
        "fingerprint": done.fingerprint,
        "weights_sha256": done.record["weights_sha256"],
        "model": done.record["model"],
        "parameters": parameters(network),
        "macs": macs(network, example),
        "weights_bytes": done.weights.stat().st_size,
    }


def format_record(options: ExportOptions, images: Tensor) -> dict[str, Any]:
    """Format and precision, and how that was come by."""
    quantisation = {
        "calibration_images": len(images),
        "calibrated_on": "training images, evenly spaced over the split",
        "weights": "8 bits, a scale a channel" if options.format == "executorch" else "7 bits, a scale a channel",
        "activations": "8 bits, a scale a tensor",
        "qat_epochs": options.qat,
        "tolerance": options.tolerance,
    }
    chosen = quantisation if options.precision == "int8" else None
    return {"format": options.format, "precision": options.precision, "quantisation": chosen}


def input_record(form: InputSpec, train: Split, student: Artefact) -> dict[str, Any]:
    """What the file takes, for whoever writes the code around it."""
    channels, height, width = train.images.shape[1:]
    values = "raw, 0..255" if form.raw else "(value / 255 - mean) / std, channel by channel"
    return {
        "name": "images",
        "dtype": "uint8" if form.raw else "float32",
        "batch": f"1 to {MOST}" if form.dynamic else 1,
        "channels": channels,
        "height": height,
        "width": width,
        "layout": "NCHW, contiguous; channels are " + ("red, green, blue" if channels == 3 else "grey"),
        "values": values,
        "mean": list(student.record["mean"]),
        "std": list(student.record["std"]),
        "output": "logits, float32, one a class",
    }


def exporter_versions(extra: str) -> dict[str, str]:
    """The versions of the packages that an exported file was made with."""
    return versions(OURS, "torch", *EXTRAS[extra])


def machine() -> dict[str, str]:
    """Where figures were measured."""
    return {"platform": platform.platform(), "processor": _processor()}


def _processor() -> str:
    """What the processor calls itself, where that can be known."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
