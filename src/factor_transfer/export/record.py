"""The record of an exported file, ``export.json``: its origin, its input, and its figures."""

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
    """The exported file."""

    name: Annotated[str, Field(pattern=r"^[^/\\\x00]+$")]  # a file in the same folder as the record
    sha256: str
    bytes: Count


class Input(Record):
    """The input of the exported file, see ``input_record``."""

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
                f"mean and std have {len(self.mean)} and {len(self.std)} values, but the images have "
                f"{self.channels} channels"
            )
        check_statistics(self.mean, self.std)
        return self


class FileRecord(Record):
    """The part of ``export.json`` that is needed to run the file."""

    file: File
    classes: list[str]
    input: Input

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise ValueError("classes must be a list of distinct names")
        return self


class Owner(Record):
    """The student that the file was exported from."""

    fingerprint: str


class OwnerRecord(Record):
    """The part of ``export.json`` that identifies the student."""

    student: Owner


class Parity(Record):
    """The comparison of the file with the trained student, see ``parity.compare``."""

    images: Size
    top1_trained: Percent
    top1_file: Percent
    equal_predictions: Percent
    largest_logit_difference: Annotated[float, Field(ge=0)]


class Costs(Record):
    """The latency of the file, see ``worker.probe``."""

    p50_ms: Annotated[float, Field(ge=0)]


class Teacher(Record):
    """The accuracy of the teacher; ``None`` if it has no classifier for the classes of the data."""

    top1: Percent | None


class Machine(Record):
    """The machine that the figures were measured on."""

    processor: str


class ExportRecord(FileRecord, OwnerRecord):
    """The part of ``export.json`` that a package shows."""

    format: Literal["executorch", "onnx"]
    precision: Literal["float32", "int8"]
    parity: Parity
    costs: Costs
    machine: Machine
    teacher: Teacher | None = None


def network_record(done: Artefact, network: nn.Module, example: Tensor) -> dict[str, Any]:
    """The identity and the size of a network, for ``export.json``.

    Args:
        done: the finished stage of the network.
        network: the network.
        example: one image (1, C, H, W) as the network takes it.
    """
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
    """The format and the precision of a file, and how it was quantised, for ``export.json``.

    Args:
        options: the options of the export.
        images: the images that the file was calibrated with.
    """
    weight_bits = 8 if options.format == "executorch" else 7
    quantisation = {
        "calibration_images": len(images),
        "calibrated_on": "training images, evenly spaced over the split",
        "weights": f"{weight_bits} bits, one scale per channel",
        "activations": "8 bits, one scale per tensor",
        "qat_epochs": options.qat,
        "tolerance": options.tolerance,
    }
    quantised = options.precision == "int8"
    return {
        "format": options.format,
        "precision": options.precision,
        "quantisation": quantisation if quantised else None,
    }


def input_record(form: InputSpec, train: Split, student: Artefact) -> dict[str, Any]:
    """The input and the output of a file, for ``export.json``: what the code that runs it on a device must provide.

    Args:
        form: the form of the input.
        train: the training images, whose shape is that of the input.
        student: the finished student, whose record has the mean and standard deviation.
    """
    channels, height, width = train.images.shape[1:]
    values = "raw, 0..255" if form.raw else "(value / 255 - mean) / std, for each channel"
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
        "output": "logits, float32, one per class",
    }


def exporter_versions(extra: str) -> dict[str, str]:
    """The versions of the packages that a file is exported with.

    Args:
        extra: the format, ``"executorch"`` or ``"onnx"``.
    """
    return versions(OURS, "torch", *EXTRAS[extra])


def machine() -> dict[str, str]:
    """The platform and the processor of this machine."""
    return {"platform": platform.platform(), "processor": _processor()}


def _processor() -> str:
    """The name of the processor, if the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
