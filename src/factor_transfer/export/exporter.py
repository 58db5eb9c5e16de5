"""An export as a part of other commands: tried before a training, and done after it if it is not up to date."""

import tempfile
from pathlib import Path
from typing import Any

from torch import nn

from factor_transfer.errors import InputError
from factor_transfer.export.build import ExportOptions, build_file
from factor_transfer.export.export import export_folder, export_images, export_student
from factor_transfer.export.formats.optional import EXTRAS, need
from factor_transfer.export.formats.runtimes import ENDINGS, open_file
from factor_transfer.export.graph import bare
from factor_transfer.export.record import RECORD, ExportRecord, exporter_versions
from factor_transfer.files import read_json, sha256
from factor_transfer.models import Normalize
from factor_transfer.models.optional import installed
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.finished_run import find_run
from factor_transfer.pipeline.records import read_record


def first_installed() -> str | None:
    """The first format whose libraries are installed, ExecuTorch before ONNX; ``None`` if neither is installed."""
    return next((extra for extra, libraries in EXTRAS.items() if all(map(installed, libraries))), None)


class StudentExporter:
    """An exporter of students of finished runs, which writes to the same folders as the command ``export``.

    Args:
        options: the format, the precision and other options of the export.

    Raises:
        InputError: the libraries of the format are not installed.
    """

    def __init__(self, options: ExportOptions) -> None:
        need(options.format)
        self.options = options

    @property
    def extra(self) -> str:
        """The format, which is also the name of the extra that installs its libraries."""
        return self.options.format

    def try_on(self, experiment: Experiment, network: nn.Module, normalize: Normalize) -> None:
        """Export an untrained student to a temporary file, and open that file.

        Raises:
            InputError: this kind of student cannot be exported.
        """
        images = export_images(experiment, self.options)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"student{ENDINGS[self.options.format]}"
            file.write_bytes(build_file(bare(network, normalize, images), normalize, images, self.options))
            open_file(file).close()

    def export(self, experiment: Experiment) -> tuple[Path, dict[str, Any]]:
        """Export the student unless its file is up to date, and return the file and the content of ``export.json``.

        Raises:
            InputError: the file is not accurate enough.
        """
        run = find_run(experiment.work_dir)
        folder = export_folder(run.student, self.options)
        up_to_date = self._find_record(folder, run.student.fingerprint)
        record = up_to_date or export_student(experiment, run, self.options)
        file = folder / str(record["file"]["name"])
        if up_to_date:
            experiment.say(f"{file.name}  up to date  {file}")
        return file, record

    def _find_record(self, folder: Path, student: str) -> dict[str, Any] | None:
        """The record of an earlier export of the same student with the same libraries, if its file is undamaged."""
        path = folder / RECORD
        if not path.is_file():
            return None
        try:
            checked = read_record(path, ExportRecord)
        except InputError:
            return None
        file, record = folder / checked.file.name, read_json(path)
        same = checked.student.fingerprint == student and record.get("versions") == exporter_versions(self.extra)
        if not same or not file.is_file() or sha256(file) != checked.file.sha256:
            return None
        return record if isinstance(record, dict) else None
