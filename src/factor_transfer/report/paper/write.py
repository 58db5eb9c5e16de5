"""Writing the table of a comparison to the files that ``--csv`` and ``--latex`` name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factor_transfer.distributed import collectives
from factor_transfer.errors import InputError
from factor_transfer.files import write_atomic
from factor_transfer.pipeline.records import read_record
from factor_transfer.report.html.work_dir import COMPARISON, Comparison
from factor_transfer.report.paper.csv_rows import as_csv
from factor_transfer.report.paper.latex import as_latex


@dataclass(frozen=True)
class TableFiles:
    """The files that a command writes the table of a comparison to.

    Args:
        csv: the path of the CSV file; ``None`` if there is none.
        latex: the path of the LaTeX file; ``None`` if there is none.

    Raises:
        InputError: if a path is a folder, so that the error is found before anything is trained.
    """

    csv: Path | None = None
    latex: Path | None = None

    def __post_init__(self) -> None:
        for option, path in (("--csv", self.csv), ("--latex", self.latex)):
            if path is not None and path.is_dir():
                raise InputError(f"{option} {path} is a folder; give the path of a file")

    def write(self, comparison: Mapping[str, Any]) -> list[Path]:
        """Write the files, and return their paths.

        Args:
            comparison: the content of ``comparison.json``.
        """
        return self._write(Comparison.model_validate(comparison))

    def write_of(self, work_dir: Path) -> list[Path]:
        """Write the files from the ``comparison.json`` of a work dir, and return their paths.

        Raises:
            InputError: if a file is wanted, but the work dir has no comparison, or its record is damaged.
        """
        if self.csv is None and self.latex is None:
            return []
        if not (work_dir / COMPARISON).is_file():
            raise InputError(
                f"{work_dir} has no {COMPARISON}, so there is no table for --csv or --latex; `factor-transfer compare` "
                "writes one"
            )
        return self._write(read_record(work_dir / COMPARISON, Comparison))

    def _write(self, comparison: Comparison) -> list[Path]:
        forms: list[tuple[Path | None, Callable[[Comparison], str]]] = [(self.csv, as_csv), (self.latex, as_latex)]
        written = [(path, form(comparison)) for path, form in forms if path is not None]
        for path, text in written:
            content = text.encode("utf-8", "backslashreplace")
            collectives.on_rank_zero(lambda path=path, content=content: write_atomic(path, content))  # type: ignore[misc]
        return [path for path, _ in written]
