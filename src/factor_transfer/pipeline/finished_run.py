"""A finished run, found by its folder: the student, its teacher, and the recipe."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from factor_transfer.config.read import read_recipe
from factor_transfer.config.recipe import ALONE, Recipe
from factor_transfer.errors import InputError
from factor_transfer.pipeline import artefact
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.pipeline.records import Summary, read_record
from factor_transfer.pipeline.weights import zoo


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        student: the finished student.
        teacher: the finished teacher in the same work dir; ``None`` if there is none.
    """

    student: Artefact
    teacher: Artefact | None

    @property
    def method(self) -> str:
        """The method that the student was trained by, from its folder's name; ``"student"`` is training without one."""
        return method_of(self.student.folder.name)

    def models(self, *stages: str) -> list[dict[str, Any]]:
        """The ``model`` records of the given stages, with the network's ``name`` and arguments.

        Args:
            stages: any of ``"teacher"`` and ``"student"``. A stage that is missing is left out.
        """
        artefacts = {"teacher": self.teacher, "student": self.student}
        return [done.record["model"] for stage in stages if (done := artefacts[stage]) and "model" in done.record]

    def recipe(self, overrides: Sequence[str] = ()) -> Recipe:
        """The recipe that the student was trained with.

        Args:
            overrides: changes to the recipe as ``KEY=VALUE``, see ``read_recipe``.

        Raises:
            InputError: if the recipe was not saved with the student, or an override is invalid.
        """
        path = self.student.folder / artefact.RECIPE
        if not path.is_file():
            raise InputError(
                f"{self.student.folder} has no {artefact.RECIPE}: the student was trained by an older version. Repeat "
                "its training command to write the recipe; what is up to date is not trained again"
            )
        return read_recipe(path, overrides)


def folder_name(row: str, seed: int) -> str:
    """The name of a student's folder; the inverse of ``method_of``.

    Args:
        row: the method, or the row of a comparison, see ``Recipe.row``.
        seed: the seed of the student.

    Example:
        >>> from factor_transfer.pipeline.finished_run import folder_name
        >>> folder_name("factor,transfer.factor.beta=50", 0)
        'student-factor,transfer.factor.beta=50-seed0'
    """
    method, comma, variant = row.partition(",")
    return f"student-{'alone' if method == ALONE else method}{comma}{variant}-seed{seed}"


def method_of(name: str) -> str:
    """The method in the name of a student's folder, such as ``"factor+kd"``; ``"student"`` is training without one.

    The variant follows it after a comma if there is one, as in ``Recipe.row``.

    Args:
        name: the name of the folder.

    Example:
        >>> from factor_transfer.pipeline.finished_run import method_of
        >>> method_of("student-factor+kd-seed0")
        'factor+kd'
    """
    method, comma, variant = name.removeprefix("student-").rpartition("-seed")[0].partition(",")
    return f"{ALONE if method == 'alone' else method}{comma}{variant}"


def named(folder: Path) -> Path:
    """A folder by its name, which ``.`` and ``..`` do not have."""
    return folder.resolve() if folder.name in ("", "..") else folder


def find_run(folder: Path) -> Run:
    """The finished run in a folder.

    Args:
        folder: the work dir of the run, the folder of a student in it, or a name that ``factor-transfer show zoo``
            lists.

    Raises:
        InputError: if there is no run, it is not finished or damaged, or the work dir has several students.
    """
    folder = named(folder)
    if not folder.is_dir() and folder.as_posix() in zoo.entries():
        folder = zoo.find(folder.as_posix()).folder
    if not folder.is_dir():
        raise InputError(
            f"{folder} does not exist; give the folder of a run, of a student in it, or the name of a student in "
            "`factor-transfer show zoo`"
        )
    student_folder = folder if (folder / artefact.RECORD).exists() else _find_student(folder)
    student = artefact.find(student_folder)
    if student is None:
        raise InputError(f"{student_folder} is not finished; the command that started its training resumes it")
    if "model" not in student.record or not student_folder.name.startswith("student"):
        raise InputError(
            f"{student_folder} contains a {student_folder.name}, not a student; give a student, such as a folder "
            f"{student_folder.parent / 'student-…'}"
        )
    teacher = artefact.find(student_folder.parent / "teacher")
    learned_from = student.record["inputs"].get("teacher")
    if teacher is not None and isinstance(learned_from, str) and learned_from != teacher.fingerprint:
        raise InputError(
            f"the teacher in {teacher.folder} is not the one that {student_folder.name} learned from; train the "
            "student again"
        )
    return Run(student, teacher)


def _find_student(work_dir: Path) -> Path:
    """The folder of the only student in a work dir, or of the student in ``summary.json``."""
    students = sorted(path for path in work_dir.glob("student-*") if (path / artefact.RECORD).exists())
    if not students:
        raise InputError(f"{work_dir} contains no student; give the folder that `factor-transfer run` wrote")
    if (work_dir / "summary.json").is_file():  # it names the student that `run` trained last
        named = Path(read_record(work_dir / "summary.json", Summary).student.weights).parent.name
        students = [path for path in students if path.name == named] or students
    if len(students) > 1:
        raise InputError(f"{work_dir} contains several students; give one: {', '.join(map(str, students[:8]))}")
    return students[0]
