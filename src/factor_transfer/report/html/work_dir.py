"""The content of a work dir that a report shows, read and validated."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from factor_transfer.config.recipe import ALONE
from factor_transfer.errors import InputError
from factor_transfer.pipeline import artefact
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.pipeline.finished_run import folder_name
from factor_transfer.pipeline.records import Count, Percent, Record, Summary, read_record
from factor_transfer.report.confidence import mean_of_known

SUMMARY, COMPARISON = "summary.json", "comparison.json"


class TeacherFigures(Record):
    """The figures of the teacher in ``comparison.json``."""

    top1: Percent
    top5: Percent


class RunFigures(Record):
    """The figures of one student in ``comparison.json``; ``None`` if its training failed."""

    method: str
    seed: int
    top1: Percent | None
    top5: Percent | None = None
    top1_kept: Percent | None = None
    top1_best: Percent | None = None  # the name of ``top1_kept`` in older files
    validation_top1: Percent | None = None
    weights_sha256: str | None = None
    seconds: Annotated[float, Field(ge=0)] | None = None
    error: str | None = None

    @property
    def kept(self) -> float | None:
        """The top-1 of the delivered weights; ``None`` if it is unknown."""
        return self.top1_best if self.top1_kept is None else self.top1_kept


class MethodFigures(Record):
    """The figures of a method in ``comparison.json``, see ``commands.compare.summarize``."""

    mean: float | None
    interval: float | None
    difference: float | None
    difference_interval: float | None
    p: float | None = None
    p_holm: float | None = None
    significant: bool | None = None
    validation_top1: Percent | None = None
    gap_closed: float | None = None
    cost: float | None = None
    failed: Count = 0


class Difference(Record):
    """The difference between two methods in ``comparison.json``, see ``commands.compare.pairwise``."""

    difference: float | None
    interval: float | None
    p_holm: float | None = None


class Comparison(Record):
    """The schema of ``comparison.json``."""

    runs: Annotated[list[RunFigures], Field(min_length=1)]
    teacher: TeacherFigures | None
    classes: Count
    against: str
    methods: dict[str, MethodFigures]
    pairwise: dict[str, dict[str, Difference]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        named = {run.method for run in self.runs} | self.pairwise.keys() | {self.against, ALONE}
        missing = sorted(named - self.methods.keys())
        if missing:
            raise ValueError(f"methods has no {missing[0]!r}")
        return self

    @property
    def seeds(self) -> list[int]:
        """The seeds of the runs, ascending."""
        return sorted({run.seed for run in self.runs})

    def count(self, method: str) -> int:
        """The number of seeds whose training by a method succeeded."""
        return sum(run.method == method and run.top1 is not None for run in self.runs)

    def top5(self, method: str) -> float | None:
        """The mean top-5 of a method; ``None`` if all its trainings failed."""
        return mean_of_known([run.top5 for run in self.runs if run.method == method])

    def kept(self, method: str) -> float | None:
        """The mean top-1 of a method's delivered weights; ``None`` if it is unknown."""
        return mean_of_known([run.kept for run in self.runs if run.method == method])

    @property
    def best(self) -> str:
        """The method with the highest mean, other than the student alone unless there is no other."""
        others = {name: one for name, one in self.methods.items() if name.partition(",")[0] != ALONE}
        means = {name: one.mean for name, one in others.items() if one.mean is not None}
        return max(means, key=lambda name: means[name]) if means else ALONE


class ExportedFile(Record):
    """The exported file in ``export.json``."""

    name: str
    bytes: Count


class ExportedParity(Record):
    """The comparison of the exported file with the trained student."""

    top1_file: Percent
    equal_predictions: Percent


class ExportedCosts(Record):
    """The latency of the exported file, in milliseconds per image."""

    p50_ms: Annotated[float, Field(ge=0)]
    p95_ms: Annotated[float, Field(ge=0)] | None = None


class ExportedMachine(Record):
    """The machine that the exported file was measured on."""

    processor: str


class Exported(Record):
    """The part of ``export.json`` that the page shows."""

    format: str
    precision: str
    file: ExportedFile
    parity: ExportedParity
    costs: ExportedCosts
    machine: ExportedMachine


@dataclass(frozen=True)
class WorkDir:
    """The content of the work dir of a run or a comparison.

    Attributes:
        folder: the work dir.
        summary: the summary of a run; ``None`` if there was only a comparison.
        comparison: the results of a comparison; ``None`` if there was only a run.
        teacher: the finished teacher, if there is one.
        baseline: the finished student alone, if there is one.
        student: the finished student of the run, or that of the comparison's best method and first seed.
        last: whether the figures are those of the last epoch, as in a comparison.
        paraphraser: the finished paraphraser, if there is one.
        exports: the exported files by the folders of the student and the export, such as
            ``"student-factor-seed0/onnx-int8"``.
        recipe: the recipe of the student, as TOML.
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
        """The classifiers that exist, by role: teacher, student alone and student."""
        artefacts = {"teacher": self.teacher, "baseline": self.baseline, "student": self.student}
        return {name: done for name, done in artefacts.items() if done is not None and done.has_classifier}


def read_work_dir(folder: Path) -> WorkDir:
    """Read the content of a work dir.

    Args:
        folder: the work dir.

    Raises:
        InputError: if the folder is not a work dir, its run is not finished, or a file in it is damaged.
    """
    if not folder.is_dir():
        raise InputError(
            f"the work dir {folder} does not exist; give the folder that `factor-transfer run` or `compare` wrote"
        )
    summary = read_record(folder / SUMMARY, Summary) if (folder / SUMMARY).is_file() else None
    comparison = read_record(folder / COMPARISON, Comparison) if (folder / COMPARISON).is_file() else None
    if summary is None and comparison is None:
        if artefact.is_work_dir(folder):
            raise InputError(
                f"{folder} has neither {SUMMARY} nor {COMPARISON}: its run is not finished. `factor-transfer run` or "
                "`compare` resumes it, and writes the report at its end"
            )
        raise InputError(
            f"{folder} is not a work dir: it has neither {SUMMARY} nor {COMPARISON}; give the folder that "
            "`factor-transfer run` or `compare` wrote"
        )
    _check_current(folder, summary, comparison)
    student, baseline = _students(summary, comparison)
    done = artefact.find(folder / student)
    if done is None or "model" not in done.record:
        raise InputError(f"{folder / student} contains no finished student, although the results in {folder} name it")
    path = done.folder / artefact.RECIPE
    if not path.is_file():
        raise InputError(
            f"{done.folder} has no {artefact.RECIPE}; repeat its training command to write the recipe: what is up to "
            "date is not trained again"
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


def _check_current(folder: Path, summary: Summary | None, comparison: Comparison | None) -> None:
    """Check that the results are those of the networks that are in the work dir now.

    Raises:
        InputError: if a network was trained again since.
    """
    recorded = {}
    if summary is not None:
        figures = [one for one in (summary.teacher, summary.student, summary.baseline) if one is not None]
        recorded[SUMMARY] = {Path(one.weights).parent.name: one.weights_sha256 for one in figures}
    if comparison is not None:
        recorded[COMPARISON] = {folder_name(run.method, run.seed): run.weights_sha256 for run in comparison.runs}
    for name, networks in recorded.items():
        for network, digest in networks.items():
            if digest is None:  # an older file, or a training that failed
                continue
            done = artefact.find(folder / network)
            if done is None or done.record["weights_sha256"] != digest:
                command = "run" if name == SUMMARY else "compare"
                raise InputError(
                    f"{folder / network} was trained again, or is being trained, since {name} was written; "
                    f"repeat `factor-transfer {command}`, which writes both again"
                )


def _students(summary: Summary | None, comparison: Comparison | None) -> tuple[str, str | None]:
    """The names of the folders of the student to show, and of the student alone."""
    if summary is not None:
        baseline = None if summary.baseline is None else Path(summary.baseline.weights).parent.name
        return Path(summary.student.weights).parent.name, baseline
    assert comparison is not None
    succeeded = {(run.method, run.seed) for run in comparison.runs if run.top1 is not None}
    method = comparison.best
    seeds = sorted(seed for name, seed in succeeded if name == method)
    if not seeds:
        raise InputError("all trainings of this comparison failed; there is nothing to report")
    alone = folder_name(ALONE, seeds[0]) if (ALONE, seeds[0]) in succeeded else None
    return folder_name(method, seeds[0]), alone


def _network(folder: Path) -> Artefact | None:
    done = artefact.find(folder)
    return done if done is not None and "model" in done.record else None


def _exports(folder: Path) -> dict[str, Exported]:
    paths: list[Any] = sorted(folder.glob("student-*/export/*/export.json"))
    return {f"{path.parts[-4]}/{path.parts[-2]}": read_record(path, Exported) for path in paths}
