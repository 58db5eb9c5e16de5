"""From a finished run to a file for a device, with the record of what it is worth beside it."""

import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from factor_transfer.artefact import Artefact
from factor_transfer.checkpoint import read_json, sha256, write_json
from factor_transfer.data import Split, in_order
from factor_transfer.errors import InputError
from factor_transfer.evaluation import predict, top
from factor_transfer.experiment import EVALUATION_BATCH, Experiment, check_fits, load_network
from factor_transfer.export.executorch import lower
from factor_transfer.export.libraries import EXTRAS, need
from factor_transfer.export.onnx import to_int8, to_onnx
from factor_transfer.export.parity import compare, costs, verdict
from factor_transfer.export.program import MOST, Form, Program, bare, capture
from factor_transfer.export.quantize import calibration, quantized
from factor_transfer.export.runtimes import ENDINGS, open_file
from factor_transfer.finished import Run
from factor_transfer.models import Normalize, macs, parameters
from factor_transfer.scoring import compare_images

RECORD = "export.json"
REJECTED = ".rejected"


@dataclass(frozen=True)
class Wish:
    """What file is wanted.

    Attributes:
        format: ``"executorch"`` or ``"onnx"``.
        precision: ``"float32"`` or ``"int8"``.
        form: see ``Form``.
        calibration: training images that 8 bits are chosen by.
        tolerance: percentage points of top-1 that an int8 file may lose.
        qat: epochs of quantisation-aware fine-tuning.
    """

    format: Literal["executorch", "onnx"]
    precision: Literal["float32", "int8"]
    form: Form = field(default_factory=Form)
    calibration: int = 256
    tolerance: float = 1.0
    qat: int = 0


def export_student(
    experiment: Experiment, run: Run, wish: Wish, out: Path | None, tune: Callable[[nn.Module], nn.Module]
) -> dict[str, Any]:
    """Write a run's student as a file, run all test images through it, and write down what came out.

    Args:
        experiment: of the run's recipe.
        run: finished.
        wish: what file.
        out: where to; a folder in the student's, if left out.
        tune: fine-tunes the network for 8 bits, if ``wish.qat`` says so.

    Returns:
        What ``export.json`` says.

    Raises:
        InputError: it cannot be exported; the extra is not installed; the file is not as good as it should be, and is
            kept under another name.
    """
    need(wish.format)
    student, data = run.student, experiment.data
    check_fits(student, data)
    note = compare_images(student, data)
    if note:
        experiment.say(f"Note: {note}")
    network, normalize = load_network(student), _normalize(student)
    folder = out or student.folder / "export" / f"{wish.format}-{wish.precision}"
    _check_own(folder, student)
    images = calibration(data.train, wish.calibration) if wish.precision == "int8" else experiment.examples.cpu()
    alone = bare(network, normalize, images)
    if wish.qat:
        alone = tune(alone)
    name = f"student{ENDINGS[wish.format]}"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as place:
        file = Path(place) / name
        file.write_bytes(content(alone, normalize, images, wish))
        experiment.say(f"{name}  {file.stat().st_size / 1000:,.1f} kB; running {len(experiment.test):,} test images")
        figures = compare(network, normalize, open_file(file), experiment.test)
        example = images[:1].float()
        record = {
            "file": {"name": name, "sha256": sha256(file), "bytes": file.stat().st_size},
            **_what(wish, images),
            "student": _facts(student, network, example) | {"method": run.method},
            "parity": figures,
            **_against_teacher(experiment, run, wish, file, example),
            "classes": list(student.record["classes"]),
            "input": _input(wish.form, data.train, normalize, student),
            "versions": _versions(wish.format),
            "machine": {"platform": platform.platform(), "processor": _processor()},
        }
        refused = verdict(figures, wish.precision, wish.tolerance)
        record["accepted"] = refused is None
        ending = "" if refused is None else REJECTED
        os.replace(file, folder / f"{name}{ending}")  # noqa: PTH105
        write_json(folder / f"{RECORD}{ending}", record)
    if refused is not None:
        raise InputError(f"the file was rejected: {refused}\nIt is kept as {folder / name}{REJECTED}")
    for former in (name, RECORD):
        (folder / f"{former}{REJECTED}").unlink(missing_ok=True)
    return record


def content(network: nn.Module, normalize: Normalize, images: Tensor, wish: Wish) -> bytes:
    """What a file holds.

    Args:
        network: see ``bare``.
        normalize: of its input.
        images: raw ones (N, C, H, W): examples, and what 8 bits are chosen by.
        wish: format, precision and form.
    """
    program = Program(network, normalize if wish.form.raw else None).eval()
    if not wish.form.raw:
        images = normalize(images)
    if wish.format == "executorch" and wish.precision == "int8":
        return lower(quantized(program, images, wish.form.dynamic))
    exported = capture(program, images, wish.form.dynamic)
    if wish.format == "executorch":
        return lower(exported)
    return to_onnx(exported) if wish.precision == "float32" else to_int8(to_onnx(exported), images)


def _check_own(folder: Path, student: Artefact) -> None:
    """Refuse a folder that holds what was made from another student."""
    if (folder / RECORD).exists():
        there = read_json(folder / RECORD)
        if not isinstance(there, dict) or there.get("student", {}).get("fingerprint") != student.fingerprint:
            raise InputError(f"{folder} holds a file of another student; give another folder with --out, or remove it")
    elif folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is no folder; give one with --out")


def _normalize(done: Artefact) -> Normalize:
    return Normalize(done.record["mean"], done.record["std"])


def _what(wish: Wish, images: Tensor) -> dict[str, Any]:
    """Format and precision, and how that was come by."""
    quantisation = {
        "calibration_images": len(images),
        "calibrated_on": "training images, evenly spaced over the split",
        "weights": "8 bits, a scale a channel" if wish.format == "executorch" else "7 bits, a scale a channel",
        "activations": "8 bits, a scale a tensor",
        "qat_epochs": wish.qat,
        "tolerance": wish.tolerance,
    }
    chosen = quantisation if wish.precision == "int8" else None
    return {"format": wish.format, "precision": wish.precision, "quantisation": chosen}


def _facts(done: Artefact, network: nn.Module, example: Tensor) -> dict[str, Any]:
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


def _against_teacher(experiment: Experiment, run: Run, wish: Wish, file: Path, example: Tensor) -> dict[str, Any]:
    """What the student's file costs, and the teacher's: float32, of the same format, run by the same runtime."""
    if run.teacher is None:
        (own,) = costs([file])
        return {"costs": own, "teacher": None, "ratios": None}
    network, normalize = load_network(run.teacher), _normalize(run.teacher)
    try:
        teacher = _teacher_file(experiment, run.teacher, network, normalize, wish)
    except InputError as error:
        experiment.say(f"teacher  has no file to compare with: {error}")
        (own,) = costs([file])
        return {"costs": own, "teacher": None, "ratios": None}
    own, its = costs([file, teacher])
    figures = top(*predict(nn.Sequential(normalize, network), in_order(experiment.test, EVALUATION_BATCH)))
    facts = _facts(run.teacher, network, example)
    size = teacher.stat().st_size
    student = load_network(run.student)
    ratios = {
        "bytes": size / file.stat().st_size,
        "parameters": facts["parameters"] / parameters(student),
        "macs": facts["macs"] / max(1, macs(student, example)),
        "latency": its["p50_ms"] / own["p50_ms"],
        "memory": its["peak_bytes"] / own["peak_bytes"] if own["peak_bytes"] else None,
    }
    teacher_said = {**facts, "top1": figures["top1"], "precision": "float32", "bytes": size, "costs": its}
    return {"costs": own, "teacher": teacher_said, "ratios": ratios}


def _teacher_file(experiment: Experiment, done: Artefact, network: nn.Module, normalize: Normalize, wish: Wish) -> Path:
    """The teacher's float32 file, made once for all exports of one format and form."""
    form = f"{'raw' if wish.form.raw else 'normalised'}-{'dynamic' if wish.form.dynamic else 'single'}"
    folder = done.folder / "export" / f"{wish.format}-float32-{form}"
    path, versions = folder / f"teacher{ENDINGS[wish.format]}", _versions(wish.format)
    if path.is_file() and (folder / RECORD).is_file():
        said = read_json(folder / RECORD)
        if said == {"fingerprint": done.fingerprint, "sha256": sha256(path), "versions": versions}:
            return path
    examples = experiment.examples.cpu()
    made = content(bare(network, normalize, examples), normalize, examples, Wish(wish.format, "float32", wish.form))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path.write_bytes(made)
    write_json(folder / RECORD, {"fingerprint": done.fingerprint, "sha256": sha256(path), "versions": versions})
    return path


def _input(form: Form, train: Split, normalize: Normalize, student: Artefact) -> dict[str, Any]:
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


def _versions(extra: str) -> dict[str, str]:
    return {name: version(name) for name in ("factor-transfer", "torch", *EXTRAS[extra])}


def _processor() -> str:
    """What the processor calls itself, where that can be known."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
