"""A finished run, by its folder: the student, the teacher that it learned from, and the recipe."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factor_transfer.config.read import read_recipe
from factor_transfer.config.recipe import Recipe
from factor_transfer.errors import InputError
from factor_transfer.pipeline import artefact
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.pipeline.records import Summary, read_record
from factor_transfer.pipeline.weights import zoo


@dataclass(frozen=True)
class Run:
    """What a run left.

    Attributes:
        student: finished.
        teacher: that lies beside it; ``None`` if there is none.
    """

    student: Artefact
    teacher: Artefact | None

    @property
    def method(self) -> str:
        """How the student was trained, as its folder's name says."""
        return method_of(self.student.folder.name)

    def models(self, *stages: str) -> list[dict[str, Any]]:
        """What the records of ``"teacher"`` and ``"student"`` say of their networks: ``name`` and arguments."""
        found = {"teacher": self.teacher, "student": self.student}
        return [done.record["model"] for stage in stages if (done := found[stage]) and "model" in done.record]

    def recipe(self, overrides: Sequence[str] = ()) -> Recipe:
        """The recipe that the student was trained by.

        Args:
            overrides: see ``read_recipe``.

        Raises:
            InputError: it was not written down, or an override is wrong.
        """
        path = self.student.folder / artefact.RECIPE
        if not path.is_file():
            raise InputError(
                f"{self.student.folder} has no {artefact.RECIPE}: it was trained before that was written down. Give "
                "the command that trained it once more; what is up to date is not trained again"
            )
        return read_recipe(path, overrides)


def method_of(name: str) -> str:
    """How a student was trained, by the name of its folder: ``"factor+kd"``; ``"student"`` is none."""
    method = name.removeprefix("student-").rpartition("-seed")[0]
    return "student" if method == "alone" else method


def find_run(folder: Path) -> Run:
    """The run in ``folder``.

    Args:
        folder: of a run, or of a student in it; or a name of ``factor-transfer show zoo``.

    Raises:
        InputError: there is none, it is not finished or damaged, or it has several students.
    """
    if not folder.is_dir() and folder.as_posix() in zoo.entries():
        folder = zoo.find(folder.as_posix()).folder
    if not folder.is_dir():
        raise InputError(f"there is no run {folder}; give the folder that `factor-transfer run` wrote, or a student's")
    place = folder if (folder / artefact.RECORD).exists() else _student(folder)
    student = artefact.find(place)
    if student is None:
        raise InputError(f"{place} is not finished; the command that began it goes on with it")
    if "model" not in student.record or not place.name.startswith("student"):
        raise InputError(f"{place} holds a {place.name}, not a student; give the run's folder, {place.parent}")
    teacher = artefact.find(place.parent / "teacher")
    learned = student.record["inputs"].get("teacher")
    if teacher is not None and isinstance(learned, str) and learned != teacher.fingerprint:
        raise InputError(
            f"the teacher in {teacher.folder} is another one than {place.name} learned from; make the student anew"
        )
    return Run(student, teacher)


def _student(work_dir: Path) -> Path:
    """The student's folder in a work dir."""
    students = sorted(path for path in work_dir.glob("student-*") if (path / artefact.RECORD).exists())
    if not students:
        raise InputError(f"{work_dir} holds no student; give the folder that `factor-transfer run` wrote")
    if (work_dir / "summary.json").is_file():  # of several, the one that `run` made last
        named = Path(read_record(work_dir / "summary.json", Summary).student.weights).parent.name
        students = [path for path in students if path.name == named] or students
    if len(students) > 1:
        raise InputError(f"{work_dir} holds several students; give one: {', '.join(map(str, students[:8]))}")
    return students[0]
