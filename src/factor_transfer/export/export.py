"""From a finished run to a file for a device, with the record of what it is worth beside it."""

import os
import tempfile
from pathlib import Path
from typing import Any

from factor_transfer.commands.test import compare_images
from factor_transfer.errors import InputError
from factor_transfer.export.build import ExportOptions, build_file
from factor_transfer.export.compare_teacher import against_teacher
from factor_transfer.export.formats.optional import need
from factor_transfer.export.formats.runtimes import ENDINGS, open_file
from factor_transfer.export.graph import bare
from factor_transfer.export.parity import compare, verdict
from factor_transfer.export.qat import fine_tune
from factor_transfer.export.quantize import calibration
from factor_transfer.export.record import (
    RECORD,
    OwnerRecord,
    exporter_versions,
    format_record,
    input_record,
    machine,
    network_record,
)
from factor_transfer.files import sha256, write_json
from factor_transfer.models import Normalize
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.pipeline.experiment import Experiment, check_fits, load_network
from factor_transfer.pipeline.finished_run import Run
from factor_transfer.pipeline.records import read_record

REJECTED = ".rejected"


def export_student(experiment: Experiment, run: Run, options: ExportOptions, out: Path | None = None) -> dict[str, Any]:
    """Write a run's student as a file, run all test images through it, and write down what came out.

    Args:
        experiment: of the run's recipe; it knows whose code may be run.
        run: finished.
        options: what file.
        out: where to; a folder in the student's, if left out.

    Returns:
        What ``export.json`` says.

    Raises:
        InputError: it cannot be exported; the extra is not installed; the file is not as good as it should be, and is
            kept under another name.
    """
    need(options.format)
    student, data = run.student, experiment.data
    check_fits(student, data)
    note = compare_images(student, data)
    if note:
        experiment.say(f"Note: {note}")
    network, normalize = (
        load_network(student, trusted_code=experiment.trusted_code or ()),
        Normalize(student.record["mean"], student.record["std"]),
    )
    folder = out or export_folder(student, options)
    _check_own(folder, student)
    images = calibration(data.train, options.calibration) if options.precision == "int8" else experiment.examples.cpu()
    alone = bare(network, normalize, images)
    if options.qat:
        alone = fine_tune(experiment, run, alone, options.qat)
    name = f"student{ENDINGS[options.format]}"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as place:
        file = Path(place) / name
        file.write_bytes(build_file(alone, normalize, images, options))
        experiment.say(f"{name}  {file.stat().st_size / 1000:,.1f} kB; running {len(experiment.test):,} test images")
        opened = open_file(file)
        figures = compare(network, normalize, opened, experiment.test)
        opened.close()
        example = images[:1].float()
        record = {
            "file": {"name": name, "sha256": sha256(file), "bytes": file.stat().st_size},
            **format_record(options, images),
            "student": network_record(student, network, example) | {"method": run.method},
            "parity": figures,
            **against_teacher(experiment, run, options, file, example),
            "classes": list(student.record["classes"]),
            "input": input_record(options.form, data.train, student),
            "versions": exporter_versions(options.format),
            "machine": machine(),
        }
        refused = verdict(figures, options.precision, options.tolerance)
        record["accepted"] = refused is None
        ending = "" if refused is None else REJECTED
        os.replace(file, folder / f"{name}{ending}")  # noqa: PTH105
        write_json(folder / f"{RECORD}{ending}", record)
    if refused is not None:
        raise InputError(f"the file was rejected: {refused}\nIt is kept as {folder / name}{REJECTED}")
    for former in (name, RECORD):
        (folder / f"{former}{REJECTED}").unlink(missing_ok=True)
    return record


def export_folder(student: Artefact, options: ExportOptions) -> Path:
    """The folder of a student's file in the student's own."""
    return student.folder / "export" / f"{options.format}-{options.precision}"


def _check_own(folder: Path, student: Artefact) -> None:
    """Refuse a folder that holds what was made from another student."""
    if (folder / RECORD).exists():
        there = read_record(folder / RECORD, OwnerRecord, "remove it, or give another folder with --out")
        if there.student.fingerprint != student.fingerprint:
            raise InputError(f"{folder} holds a file of another student; give another folder with --out, or remove it")
    elif folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is no folder; give one with --out")
