"""What ``export.json`` says beside the figures: of what the file was made, what it takes, and where that was."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from factor_transfer.data import Split
from factor_transfer.export.build import ExportOptions
from factor_transfer.export.formats.optional import EXTRAS
from factor_transfer.export.graph import MOST, InputSpec
from factor_transfer.models import macs, parameters
from factor_transfer.pipeline.artefact import Artefact

RECORD = "export.json"


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


def versions(extra: str) -> dict[str, str]:
    """Of what a file was made with."""
    return {name: version(name) for name in ("factor-transfer", "torch", *EXTRAS[extra])}


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
