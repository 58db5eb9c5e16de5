"""Exporting the student of a finished run to a file for a device, with a record of its accuracy and costs."""

import os
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

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
    """Export the student of a run to a file, run all test images through the file, and record the results.

    Args:
        experiment: the experiment of the run, with the code outside this package that may be run.
        run: the finished run.
        options: the format, the precision and the other options of the file.
        out: the folder to write to; ``None`` is a folder inside the student's.

    Returns:
        The content of ``export.json``.

    Raises:
        InputError: if the student cannot be exported, the libraries are not installed, or the file is rejected because
            it is not accurate enough; it then has the ending ``.rejected``.
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
    _check_folder(folder, student)
    images = export_images(experiment, options)
    exportable = bare(network, normalize, images)
    if options.qat:
        exportable = fine_tune(experiment, run, exportable, options.qat)
    name = f"student{ENDINGS[options.format]}"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as place:
        file = Path(place) / name
        file.write_bytes(build_file(exportable, normalize, images, options))
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
        reason = verdict(figures, options.precision, options.tolerance)
        record["accepted"] = reason is None
        ending = "" if reason is None else REJECTED
        os.replace(file, folder / f"{name}{ending}")  # noqa: PTH105
        write_json(folder / f"{RECORD}{ending}", record)
    if reason is not None:
        raise InputError(f"the file was rejected: {reason}\nIt was saved as {folder / name}{REJECTED}")
    for accepted in (name, RECORD):
        (folder / f"{accepted}{REJECTED}").unlink(missing_ok=True)
    return record


def export_images(experiment: Experiment, options: ExportOptions) -> Tensor:
    """The raw images that an export is built with, (N, C, H, W): those of the calibration, or a few examples."""
    if options.precision == "int8":
        return calibration(experiment.data.train, options.calibration)
    return experiment.examples.cpu()


def export_folder(student: Artefact, options: ExportOptions) -> Path:
    """The default folder of an exported file, inside the folder of its student."""
    return student.folder / "export" / f"{options.format}-{options.precision}"


def _check_folder(folder: Path, student: Artefact) -> None:
    """Check that a folder can be written to, and has no file that was exported from another student."""
    if (folder / RECORD).exists():
        existing = read_record(folder / RECORD, OwnerRecord, "remove it, or give another folder with --out")
        if existing.student.fingerprint != student.fingerprint:
            raise InputError(
                f"{folder} contains a file of another student; give another folder with --out, or remove it"
            )
    elif folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give a folder with --out")
