"""The comparison of an exported student with its teacher, exported in float32 to the same format."""

import shutil
import tempfile
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
from factor_transfer.pipeline.weights.zoo import holds
from factor_transfer.training.evaluate import predict, top


def against_teacher(
    experiment: Experiment, run: Run, options: ExportOptions, file: Path, example: Tensor
) -> dict[str, Any]:
    """The costs of the student's file and of the teacher's, which is float32 in the same format.

    Args:
        experiment: the experiment.
        run: the finished run.
        options: the options of the export.
        file: the student's file.
        example: one image (1, C, H, W).

    Returns:
        ``costs`` of the student's file, the figures of the ``teacher``, and the ``ratios`` of the teacher's figures to
        the student's; the latter two are ``None`` if there is no teacher, or it cannot be exported.
    """
    if run.teacher is None:
        (student_costs,) = costs([file])
        return {"costs": student_costs, "teacher": None, "ratios": None}
    trusted = experiment.trusted_code or ()
    network, normalize = (
        load_network(run.teacher, trusted_code=trusted),
        Normalize(run.teacher.record["mean"], run.teacher.record["std"]),
    )
    with tempfile.TemporaryDirectory() as place:
        try:
            teacher = _teacher_file(experiment, run.teacher, network, normalize, options, Path(place))
        except InputError as error:
            experiment.say(f"teacher  could not be exported for comparison: {error}")
            (student_costs,) = costs([file])
            return {"costs": student_costs, "teacher": None, "ratios": None}
        student_costs, teacher_costs = costs([file, teacher])
        size = teacher.stat().st_size
    test = in_order(experiment.test, EVALUATION_BATCH)
    figures = top(*predict(nn.Sequential(normalize, network), test)) if run.teacher.has_classifier else {"top1": None}
    record = network_record(run.teacher, network, example)
    student = load_network(run.student, trusted_code=trusted)
    ratios = {
        "bytes": size / file.stat().st_size,
        "parameters": record["parameters"] / parameters(student),
        "macs": record["macs"] / max(1, macs(student, example)),
        "latency": teacher_costs["p50_ms"] / student_costs["p50_ms"],
        "memory": teacher_costs["peak_bytes"] / student_costs["peak_bytes"] if student_costs["peak_bytes"] else None,
    }
    record |= {"top1": figures["top1"], "precision": "float32", "bytes": size, "costs": teacher_costs}
    return {"costs": student_costs, "teacher": record, "ratios": ratios}


def _teacher_file(
    experiment: Experiment,
    done: Artefact,
    network: nn.Module,
    normalize: Normalize,
    options: ExportOptions,
    elsewhere: Path,
) -> Path:
    """The path of the teacher's float32 file, which is built once for all exports of the same format and form.

    It is stored in the teacher's folder; in the folder ``elsewhere``, if that cannot be written to, or is of the zoo.
    """
    form = f"{'raw' if options.form.raw else 'normalised'}-{'dynamic' if options.form.dynamic else 'single'}"
    folder = done.folder / "export" / f"{options.format}-float32-{form}"
    path, now = folder / f"teacher{ENDINGS[options.format]}", exporter_versions(options.format)
    if path.is_file() and (folder / RECORD).is_file():
        stored = read_json(folder / RECORD)
        if stored == {"fingerprint": done.fingerprint, "sha256": sha256(path), "versions": now}:
            open_file(path).close()  # a file from the run's folder is verified before it is measured
            return path
    examples = experiment.examples.cpu()
    content = build_file(
        bare(network, normalize, examples), normalize, examples, ExportOptions(options.format, "float32", options.form)
    )
    if not holds(done.folder):
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_atomic(path, content)
            write_json(folder / RECORD, {"fingerprint": done.fingerprint, "sha256": sha256(path), "versions": now})
        except OSError:
            pass
        else:
            return path
    write_atomic(elsewhere / path.name, content)
    return elsewhere / path.name
