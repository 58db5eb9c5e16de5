"""An export as a part of something larger: tried before a training, done after it, and not done twice."""

import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from factor_transfer.errors import InputError
from factor_transfer.export.build import ExportOptions, build_file
from factor_transfer.export.export import export_folder, export_student
from factor_transfer.export.formats.optional import EXTRAS, need
from factor_transfer.export.formats.runtimes import ENDINGS, open_file
from factor_transfer.export.graph import bare
from factor_transfer.export.quantize import calibration
from factor_transfer.export.record import RECORD, ExportRecord, exporter_versions
from factor_transfer.files import read_json, sha256
from factor_transfer.models import Normalize
from factor_transfer.models.optional import installed
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.finished_run import find_run
from factor_transfer.pipeline.records import read_record


def first_installed() -> str | None:
    """The format whose libraries are installed, ExecuTorch's before ONNX's; ``None`` if neither is."""
    return next((extra for extra, libraries in EXTRAS.items() if all(map(installed, libraries))), None)


class StudentExporter:
    """Exports students of finished runs into the folders that ``export`` uses.

    Args:
        options: format and precision.

    Raises:
        InputError: what the format needs is not installed.
    """

    def __init__(self, options: ExportOptions) -> None:
        need(options.format)
        self.options = options

    @property
    def extra(self) -> str:
        """The format, and the extra of this package that brings it."""
        return self.options.format

    def try_on(self, experiment: Experiment, network: nn.Module, normalize: Normalize) -> None:
        """Export an untrained student into a file that is thrown away, and open that file.

        Raises:
            InputError: a student like this cannot be exported.
        """
        images = self._images(experiment)
        with tempfile.TemporaryDirectory() as place:
            file = Path(place) / f"student{ENDINGS[self.options.format]}"
            file.write_bytes(build_file(bare(network, normalize, images), normalize, images, self.options))
            open_file(file).close()

    def export(self, experiment: Experiment) -> tuple[Path, dict[str, Any]]:
        """The path of the student's file, and what ``export.json`` says; a file that is up to date is not made anew.

        Raises:
            InputError: the file is not as good as it should be.
        """
        found = find_run(experiment.work_dir)
        folder = export_folder(found.student, self.options)
        done = self._done(folder, found.student.fingerprint)
        record = done or export_student(experiment, found, self.options)
        file = folder / str(record["file"]["name"])
        if done:
            experiment.say(f"{file.name}  up to date  {file}")
        return file, record

    def _images(self, experiment: Experiment) -> Tensor:
        if self.options.precision == "int8":
            return calibration(experiment.data.train, self.options.calibration)
        return experiment.examples.cpu()

    def _done(self, folder: Path, student: str) -> dict[str, Any] | None:
        """What the record of an earlier export says, if that was of this student and by these libraries."""
        path = folder / RECORD
        if not path.is_file():
            return None
        try:
            said = read_record(path, ExportRecord)
        except InputError:
            return None
        file, record = folder / said.file.name, read_json(path)
        same = said.student.fingerprint == student and record.get("versions") == exporter_versions(self.extra)
        if not same or not file.is_file() or sha256(file) != said.file.sha256:
            return None
        return record if isinstance(record, dict) else None
