"""The teacher's file, for comparison: float32, of the same format, run by the same runtime."""

import shutil
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from factor_transfer.data import in_order
from factor_transfer.errors import InputError
from factor_transfer.export.build import ExportOptions, build_file
from factor_transfer.export.formats.runtimes import ENDINGS, costs, open_file
from factor_transfer.export.graph import bare
from factor_transfer.export.record import RECORD, exporter_versions, network_record
from factor_transfer.files import read_json, sha256, write_atomic, write_json
from factor_transfer.models import Normalize, macs, parameters
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.pipeline.experiment import EVALUATION_BATCH, Experiment, load_network
from factor_transfer.pipeline.finished_run import Run
from factor_transfer.training.evaluate import predict, top


def against_teacher(
    experiment: Experiment, run: Run, options: ExportOptions, file: Path, example: Tensor
) -> dict[str, Any]:
    """What the student's file costs, and the teacher's: float32, of the same format, run by the same runtime."""
    if run.teacher is None:
        (own,) = costs([file])
        return {"costs": own, "teacher": None, "ratios": None}
    trusted = experiment.trusted_code or ()
    network, normalize = (
        load_network(run.teacher, trusted_code=trusted),
        Normalize(run.teacher.record["mean"], run.teacher.record["std"]),
    )
    try:
        teacher = _teacher_file(experiment, run.teacher, network, normalize, options)
    except InputError as error:
        experiment.say(f"teacher  has no file to compare with: {error}")
        (own,) = costs([file])
        return {"costs": own, "teacher": None, "ratios": None}
    own, its = costs([file, teacher])
    figures = top(*predict(nn.Sequential(normalize, network), in_order(experiment.test, EVALUATION_BATCH)))
    known = network_record(run.teacher, network, example)
    size = teacher.stat().st_size
    student = load_network(run.student, trusted_code=trusted)
    ratios = {
        "bytes": size / file.stat().st_size,
        "parameters": known["parameters"] / parameters(student),
        "macs": known["macs"] / max(1, macs(student, example)),
        "latency": its["p50_ms"] / own["p50_ms"],
        "memory": its["peak_bytes"] / own["peak_bytes"] if own["peak_bytes"] else None,
    }
    teacher_said = {**known, "top1": figures["top1"], "precision": "float32", "bytes": size, "costs": its}
    return {"costs": own, "teacher": teacher_said, "ratios": ratios}


def _teacher_file(
    experiment: Experiment, done: Artefact, network: nn.Module, normalize: Normalize, options: ExportOptions
) -> Path:
    """The teacher's float32 file, made once for all exports of one format and form."""
    form = f"{'raw' if options.form.raw else 'normalised'}-{'dynamic' if options.form.dynamic else 'single'}"
    folder = done.folder / "export" / f"{options.format}-float32-{form}"
    path, now = folder / f"teacher{ENDINGS[options.format]}", exporter_versions(options.format)
    if path.is_file() and (folder / RECORD).is_file():
        stored = read_json(folder / RECORD)
        if stored == {"fingerprint": done.fingerprint, "sha256": sha256(path), "versions": now}:
            open_file(path).close()  # it was found in the run's folder: it is verified before it is measured
            return path
    examples = experiment.examples.cpu()
    made = build_file(
        bare(network, normalize, examples), normalize, examples, ExportOptions(options.format, "float32", options.form)
    )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_atomic(path, made)
    write_json(folder / RECORD, {"fingerprint": done.fingerprint, "sha256": sha256(path), "versions": now})
    return path
