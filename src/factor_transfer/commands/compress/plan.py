"""The plan: a recipe for a folder of pictures, made for this device and the time that there is."""

import math
import shlex
import time
from dataclasses import dataclass, replace
from pathlib import Path

from factor_transfer.commands.compress import measure as measuring
from factor_transfer.commands.compress.choose import (
    Choice,
    ChosenNetwork,
    choose_batch_size,
    choose_networks,
    choose_transfer,
    parse_student,
    parse_teacher,
    sizes,
)
from factor_transfer.commands.compress.look import Pictures, look
from factor_transfer.commands.compress.measure import Exporter, Measured
from factor_transfer.commands.compress.recipe_file import command_line, recipe_text
from factor_transfer.commands.compress.schedule import Costs, Epochs, is_roomy, least_epochs, plan_epochs, shorten
from factor_transfer.distributed.fabric import find_device
from factor_transfer.errors import InputError
from factor_transfer.report.names import name_of

_ONE = Epochs(1, 1, 1)
_FEW = 10  # epochs; in fewer, networks do not see enough of the images to be shown them shifted


@dataclass(frozen=True)
class Wish:
    """What a person asks for.

    Attributes:
        pictures: the folder.
        minutes: the time that everything may take.
        teacher: see ``parse_teacher``.
        student: see ``parse_student``.
    """

    pictures: Path
    minutes: float = 8.0
    teacher: str | None = None
    student: str | None = None

    def check(self) -> tuple[ChosenNetwork | None, ChosenNetwork | None]:
        """The teacher and the student that are asked for.

        Raises:
            InputError: an unknown network, a file that is not there, no time.
        """
        if not (self.minutes > 0 and math.isfinite(self.minutes)):
            raise InputError(f"--minutes is {self.minutes:g}, expected more than 0: the time that everything may take")
        teacher = None if self.teacher is None else parse_teacher(self.teacher)
        return teacher, None if self.student is None else parse_student(self.student)

    def command(self, name: str = "compress", **others: str | None) -> str:
        """The command that says so."""
        return command_line(name, self.pictures, self.minutes, self.teacher, self.student, **others)


@dataclass(frozen=True)
class Plan:
    """A recipe that is not written yet.

    Attributes:
        wish: what a person asks for.
        pictures: the folder.
        choice: what is trained.
        costs: what was measured.
        epochs: for how long each stage is trained.
        shifted: whether the images are shown shifted. It stays as planned, since all stages share the images.
        lines: what was chosen and why, and what it costs, for the person.
        run: the command that trains by the recipe.
    """

    wish: Wish
    pictures: Pictures
    choice: Choice
    costs: Costs
    epochs: Epochs
    shifted: bool
    lines: list[str]
    run: str

    @property
    def text(self) -> str:
        """The recipe."""
        notes = [*self.lines, "", f"To train by it again, after a change: {self.run}"]
        device = find_device("auto").type
        return recipe_text(self.wish.command(), notes, self.pictures, self.choice, self.epochs, self.shifted, device)

    def after_teacher(self, teacher_s: float, spent_s: float) -> "Plan | None":
        """A shorter plan for what is left to do, where the teacher has taken longer than planned.

        Args:
            teacher_s: the seconds that its training took.
            spent_s: the seconds of the whole time that are over.

        Returns:
            The plan; ``None`` if the present one still fits into the time.
        """
        planned_s = self.epochs.seconds(self.costs)["teacher"]
        slower = max(1.0, teacher_s / planned_s) if planned_s else 1.0
        least = least_epochs(self.pictures.training, self.choice.batch_size)
        epochs = shorten(self.epochs, self.costs, slower, 60 * self.wish.minutes - spent_s, least)
        if epochs == self.epochs:
            return None
        line = (
            f"changed  the teacher took {teacher_s / 60:.1f} minutes where {planned_s / 60:.1f} were planned, since "
            f"this device has become slower; to keep to the time, the students are trained for {epochs.student} "
            f"epochs in place of {self.epochs.student}"
        )
        return replace(self, epochs=epochs, lines=[*self.lines, line])


def make_plan(wish: Wish, run: str, exporter: Exporter | None, began: float) -> Plan:
    """Look at the pictures, measure how fast this device trains, and choose what fits into the time.

    Args:
        wish: what a person asks for.
        run: the command that trains by the recipe.
        exporter: what will write the file, if one is wanted.
        began: when the command began, as ``time.perf_counter`` has it.

    Raises:
        InputError: what is asked for cannot be, or not in this time.
    """
    teacher, student = wish.check()
    pictures, device = look(wish.pictures), find_device("auto").type
    batch_size = choose_batch_size(pictures.training, device)
    candidates = sizes(pictures, device, teacher)
    for size in candidates:
        networks = choose_networks(size, device, teacher, student)
        choice = Choice(size, *networks, batch_size, choose_transfer(pictures.training))
        draft = recipe_text(wish.command(), [], pictures, choice, _ONE, shifted=True, device=device)
        measured = measuring.measure(draft, pictures, exporter)
        spent_s = time.perf_counter() - began
        fine_tuned = choice.teacher.weights is not None
        try:
            epochs = plan_epochs(measured.costs, wish.minutes, spent_s, pictures.training, batch_size, fine_tuned)
        except InputError:
            if size == candidates[-1]:
                raise
            continue
        if is_roomy(epochs, pictures.training):
            break
    lines = _lines(pictures, choice, measured, epochs, wish.minutes, spent_s)
    return Plan(wish, pictures, choice, measured.costs, epochs, epochs.student >= _FEW, lines, run)


def run_command(path: Path, work_dir: Path | None = None) -> str:
    """The command that trains by a recipe."""
    place = [] if work_dir is None else ["--work-dir", str(work_dir)]
    return shlex.join(["factor-transfer", "run", str(path), *place, "--baseline"])


def _lines(
    pictures: Pictures, choice: Choice, measured: Measured, epochs: Epochs, minutes: float, spent_s: float
) -> list[str]:
    smallest, middle, largest = pictures.sides
    own = (
        f"are {smallest} to {largest} pixels, {middle} in the middle" if smallest < largest else f"are {middle} pixels"
    )
    teacher, student, costs = choice.teacher, choice.student, measured.costs
    why = ""
    if teacher.weights is None and measured.teacher > measured.student:
        why = ": same family, less depth, which is where Factor Transfer gains most"
    terms = ", ".join(
        f"{name_of(term)} ({', '.join(f'{key} = {value:g}' for key, value in settings.items())})"
        for term, settings in choice.transfer.items()
    )
    seconds = {name: value for name, value in epochs.seconds(costs).items() if value}
    planned = f"{(spent_s + sum(seconds.values())) / 60:.1f}"
    counts = {"teacher": epochs.teacher, "paraphraser": epochs.paraphraser}
    counts |= dict.fromkeys(("student", "student alone"), epochs.student)
    parts = [
        f"{name} {value / 60:.1f}{f' ({counts[name]} epochs)' if name in counts else ''}"
        for name, value in seconds.items()
    ]
    origin = {None: "", "pretrained": ", with the weights of its zoo"}.get(teacher.weights, f" of {teacher.weights}")
    lines = [
        f"chosen  images of {choice.size}×{choice.size} pixels; the shorter sides of the pictures {own}",
        f"chosen  {teacher.model}{origin} ({measured.teacher:,} parameters) teaches {student.model} "
        f"({measured.student:,}){why}",
        f"chosen  the student learns from labels and by {terms}; batches of {choice.batch_size}, cosine schedule",
        f"cost    {planned} of {minutes:g} minutes: {', '.join(parts)}, this look {spent_s / 60:.1f}",
        f"cost    about {costs.memory_mb:,.0f} MB of memory and {math.ceil(costs.disk_mb):,} MB on the disk",
    ]
    if measured.student >= measured.teacher:
        lines.append("Warning: the student is no smaller than the teacher; name another with --student or --teacher")
    return lines
