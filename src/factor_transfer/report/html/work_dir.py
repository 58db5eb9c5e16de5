"""What a work dir holds for a report, read and checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from factor_transfer.config.recipe import ALONE
from factor_transfer.errors import InputError
from factor_transfer.pipeline import artefact
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.pipeline.records import Count, Percent, Record, Summary, read_record

SUMMARY, COMPARISON = "summary.json", "comparison.json"


class TeacherFigures(Record):
    """What ``comparison.json`` says of the teacher."""

    top1: Percent
    top5: Percent


class RunFigures(Record):
    """What it says of one student; a training that failed has no figures."""

    method: str
    seed: int
    top1: Percent | None
    top5: Percent | None = None


class MethodFigures(Record):
    """What it says of a method, see ``commands.compare.summarize``."""

    mean: float | None
    interval: float | None
    difference: float | None
    difference_interval: float | None
    p_holm: float | None = None
    significant: bool | None = None
    gap_closed: float | None = None
    cost: float | None = None
    failed: Count = 0


class Difference(Record):
    """What it says of two methods, see ``commands.compare.pairwise``."""

    difference: float | None
    interval: float | None
    p_holm: float | None = None


class Comparison(Record):
    """``comparison.json``."""

    runs: Annotated[list[RunFigures], Field(min_length=1)]
    teacher: TeacherFigures
    classes: Count
    against: str
    methods: dict[str, MethodFigures]
    pairwise: dict[str, dict[str, Difference]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        named = {run.method for run in self.runs} | self.pairwise.keys() | {self.against, ALONE}
        absent = sorted(named - self.methods.keys())
        if absent:
            raise ValueError(f"methods has no {absent[0]!r}")
        return self

    @property
    def seeds(self) -> list[int]:
        """The seeds of its runs, ascending."""
        return sorted({run.seed for run in self.runs})

    @property
    def best(self) -> str:
        """The method with the highest mean among those that have a teacher; the student alone, if there is no other."""
        means = {name: one.mean for name, one in self.methods.items() if name != ALONE and one.mean is not None}
        return max(means, key=lambda name: means[name]) if means else ALONE


class ExportedFile(Record):
    """The file that ``export.json`` is of."""

    name: str
    bytes: Count


class ExportedParity(Record):
    """How it compares with the trained student."""

    top1_file: Percent
    equal_predictions: Percent


class ExportedCosts(Record):
    """What an image costs."""

    p50_ms: Annotated[float, Field(ge=0)]
    p95_ms: Annotated[float, Field(ge=0)] | None = None


class ExportedMachine(Record):
    """Where that was measured."""

    processor: str


class Exported(Record):
    """What of ``export.json`` the page shows."""

    format: str
    precision: str
    file: ExportedFile
    parity: ExportedParity
    costs: ExportedCosts
    machine: ExportedMachine


@dataclass(frozen=True)
class WorkDir:
    """What is in the work dir of a run, or of a comparison.

    Attributes:
        folder: the work dir.
        summary: of a run.
        comparison: of methods.
        teacher: finished.
        baseline: the student alone.
        student: of a run; or of the comparison's best method and first seed.
        last: whether the figures are those of the students' last epochs, as a comparison's are.
        paraphraser: finished.
        exports: by the student's folder and the export's, such as ``"student-factor-seed0/onnx-int8"``.
        recipe: the student's, as TOML.
    """

    folder: Path
    summary: Summary | None
    comparison: Comparison | None
    teacher: Artefact | None
    baseline: Artefact | None
    student: Artefact
    last: bool
    paraphraser: Artefact | None
    exports: Mapping[str, Exported]
    recipe: str

    @property
    def networks(self) -> dict[str, Artefact]:
        """Teacher, student alone and student, as far as they are there."""
        found = {"teacher": self.teacher, "baseline": self.baseline, "student": self.student}
        return {name: done for name, done in found.items() if done is not None}


def read_work_dir(folder: Path) -> WorkDir:
    """What is in a work dir.

    Raises:
        InputError: it is no work dir, its run is not finished, or a file in it is damaged.
    """
    if not folder.is_dir():
        raise InputError(
            f"there is no work dir {folder}; give the folder that `factor-transfer run` or `compare` wrote"
        )
    summary = read_record(folder / SUMMARY, Summary) if (folder / SUMMARY).is_file() else None
    comparison = read_record(folder / COMPARISON, Comparison) if (folder / COMPARISON).is_file() else None
    if summary is None and comparison is None:
        if artefact.is_work_dir(folder):
            raise InputError(
                f"{folder} has neither {SUMMARY} nor {COMPARISON}: its run is not finished. `factor-transfer run` or "
                "`compare` goes on with it, and writes the report at its end"
            )
        raise InputError(
            f"{folder} is no work dir: it has neither {SUMMARY} nor {COMPARISON}; give the folder that "
            "`factor-transfer run` or `compare` wrote"
        )
    student, baseline = _students(summary, comparison)
    done = artefact.find(folder / student)
    if done is None or "model" not in done.record:
        raise InputError(f"{folder / student} holds no finished student, which {folder} has a record of")
    path = done.folder / artefact.RECIPE
    if not path.is_file():
        raise InputError(
            f"{done.folder} has no {artefact.RECIPE}; give the command that trained it once more: what is up to date "
            "is not trained again"
        )
    return WorkDir(
        folder,
        summary,
        comparison,
        _network(folder / "teacher"),
        _network(folder / baseline) if baseline not in (None, student) else None,
        done,
        last=summary is None,
        paraphraser=artefact.find(folder / "paraphraser"),
        exports=_exports(folder),
        recipe=path.read_text(encoding="utf-8", errors="replace"),
    )


def _students(summary: Summary | None, comparison: Comparison | None) -> tuple[str, str | None]:
    """The folders of the student to show, and of the student alone."""
    if summary is not None:
        baseline = None if summary.baseline is None else Path(summary.baseline.weights).parent.name
        return Path(summary.student.weights).parent.name, baseline
    assert comparison is not None
    good = {(run.method, run.seed) for run in comparison.runs if run.top1 is not None}
    method = comparison.best
    seeds = sorted(seed for name, seed in good if name == method)
    if not seeds:
        raise InputError("all trainings of this comparison failed; there is nothing to report")
    alone = f"student-alone-seed{seeds[0]}" if (ALONE, seeds[0]) in good else None
    return f"student-{'alone' if method == ALONE else method}-seed{seeds[0]}", alone


def _network(folder: Path) -> Artefact | None:
    done = artefact.find(folder)
    return done if done is not None and "model" in done.record else None


def _exports(folder: Path) -> dict[str, Exported]:
    paths: list[Any] = sorted(folder.glob("student-*/export/*/export.json"))
    return {f"{path.parts[-4]}/{path.parts[-2]}": read_record(path, Exported) for path in paths}
