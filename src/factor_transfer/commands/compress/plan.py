"""The plan of a training: a recipe for a folder of pictures, this device and the given time."""

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
    is_less_deep,
    parse_student,
    parse_teacher,
    sizes,
)
from factor_transfer.commands.compress.look import Pictures, look
from factor_transfer.commands.compress.measure import Exporter, Measured
from factor_transfer.commands.compress.recipe_file import command_line, recipe_text
from factor_transfer.commands.compress.schedule import (
    Costs,
    Epochs,
    is_roomy,
    least_epochs,
    most_epochs,
    plan_epochs,
    replan,
)
from factor_transfer.distributed.device import find_device
from factor_transfer.errors import InputError
from factor_transfer.files import check_names
from factor_transfer.report.names import name_of

_ONE = Epochs(1, 1, 1)
_FEW = 10  # with fewer epochs, images are not shifted, since networks see each one too rarely


@dataclass(frozen=True)
class Request:
    """The options of ``compress`` or ``init``.

    Attributes:
        pictures: the folder of pictures.
        minutes: the time for everything.
        teacher: the value of ``--teacher``, see ``parse_teacher``.
        student: the value of ``--student``, see ``parse_student``.
        unlabelled: the folders of pictures without labels.
    """

    pictures: Path
    minutes: float = 8.0
    teacher: str | None = None
    student: str | None = None
    unlabelled: tuple[Path, ...] = ()

    def check(self) -> tuple[ChosenNetwork | None, ChosenNetwork | None]:
        """Check the options, and return the given teacher and student.

        Raises:
            InputError: a network is unknown, a file does not exist, the name of a folder is not text, or the time is
                not positive.
        """
        for folder in (self.pictures, *self.unlabelled):
            check_names(folder)
        if not (self.minutes > 0 and math.isfinite(self.minutes)):
            raise InputError(f"--minutes must be more than 0, got {self.minutes:g}; it is the time for everything")
        teacher = None if self.teacher is None else parse_teacher(self.teacher)
        return teacher, None if self.student is None else parse_student(self.student)

    def command(self, name: str = "compress", **others: str | None) -> str:
        """The command with these options."""
        return command_line(name, self.pictures, self.unlabelled, self.minutes, self.teacher, self.student, **others)


@dataclass(frozen=True)
class Plan:
    """A plan of a training, from which the recipe is written.

    Attributes:
        request: the options of the command.
        pictures: the folder of pictures.
        choice: the networks, image size and batch size.
        costs: the measured costs.
        epochs: the number of epochs of each stage.
        shifted: whether the images are randomly shifted. ``after_teacher`` does not change it, since all stages share
            the images.
        lines: the choices, their reasons and the costs, as lines to print.
        run: the command that trains with the recipe.
    """

    request: Request
    pictures: Pictures
    choice: Choice
    costs: Costs
    epochs: Epochs
    shifted: bool
    lines: list[str]
    run: str

    @property
    def text(self) -> str:
        """The text of the recipe."""
        notes = [*self.lines, "", f"To train again after a change: {self.run}"]
        device = find_device("auto").type
        return recipe_text(self.request.command(), notes, self.pictures, self.choice, self.epochs, self.shifted, device)

    def after_teacher(self, teacher_s: float, spent_s: float) -> "Plan | None":
        """Another plan for the remaining stages, if the teacher has taken longer than planned, or much less time.

        Args:
            teacher_s: the duration of the teacher's training, in seconds.
            spent_s: the time spent so far, in seconds.

        Returns:
            The new plan, or ``None`` if this one still suits the time.
        """
        planned_s = self.epochs.seconds(self.costs)["teacher"]
        slower = max(1.0, teacher_s / planned_s) if planned_s else 1.0
        images, left_s = self.pictures.training + self.pictures.unlabelled, 60 * self.request.minutes - spent_s
        bounds = least_epochs(images, self.choice.batch_size), most_epochs(images)
        epochs = replan(self.epochs, self.costs, slower, left_s, *bounds)
        if epochs == self.epochs:
            return None
        if epochs.student < self.epochs.student:
            reason = (
                f"the teacher took {teacher_s / 60:.1f} minutes instead of the planned {planned_s / 60:.1f}, since "
                "this device has become slower; to stay within the time"
            )
        else:
            reason = f"{left_s / 60:.1f} minutes are left after the teacher, more than planned; to use them"
        change = f"the students are trained for {epochs.student} epochs instead of {self.epochs.student}"
        return replace(self, epochs=epochs, lines=[*self.lines, f"changed  {reason}, {change}"])


def make_plan(request: Request, run: str, exporter: Exporter | None, began: float) -> Plan:
    """Read the pictures, measure how fast this device trains, and choose what fits into the time.

    Args:
        request: the options of the command.
        run: the command that trains with the recipe.
        exporter: the exporter of the student, if it is exported.
        began: the start of the command, in seconds of ``time.perf_counter``.

    Raises:
        InputError: the request cannot be met, or not in this time.
    """
    teacher, student = request.check()
    pictures, device = look(request.pictures, request.unlabelled), find_device("auto").type
    batch_size = choose_batch_size(pictures.training, device)
    candidates = sizes(pictures, device, teacher)
    for size in candidates:
        networks = choose_networks(size, device, teacher, student)
        choice = Choice(size, *networks, batch_size, choose_transfer(pictures.training, pictures.unlabelled))
        draft = recipe_text(request.command(), [], pictures, choice, _ONE, shifted=True, device=device)
        measured = measuring.measure(draft, pictures, exporter)
        spent_s = time.perf_counter() - began
        fine_tuned = choice.teacher.weights is not None
        try:
            images = pictures.training, batch_size, fine_tuned, pictures.unlabelled
            epochs = plan_epochs(measured.costs, request.minutes, spent_s, *images)
        except InputError:
            if size == candidates[-1]:
                raise
            continue
        if is_roomy(epochs, pictures.training + pictures.unlabelled):
            break
    lines = _lines(pictures, choice, measured, epochs, request.minutes, spent_s)
    return Plan(request, pictures, choice, measured.costs, epochs, epochs.student >= _FEW, lines, run)


def run_command(path: Path, work_dir: Path | None = None) -> str:
    """The command that trains with a recipe."""
    place = [] if work_dir is None else ["--work-dir", str(work_dir)]
    return shlex.join(["factor-transfer", "run", str(path), *place, "--baseline"])


def _lines(
    pictures: Pictures, choice: Choice, measured: Measured, epochs: Epochs, minutes: float, spent_s: float
) -> list[str]:
    smallest, middle, largest = pictures.sides
    range_text = (
        f"are {smallest} to {largest} pixels, with a median of {middle}"
        if smallest < largest
        else f"are {middle} pixels"
    )
    teacher, student, costs = choice.teacher, choice.student, measured.costs
    why = ""
    if teacher.weights is None and is_less_deep(teacher.model, student.model):
        why = ": same family, less depth, which is where Factor Transfer gains most"
    terms = ", ".join(
        f"{name_of(term)} ({', '.join(f'{key} = {value:g}' for key, value in settings.items())})"
        for term, settings in choice.transfer.items()
    )
    use = "use" if len(choice.transfer) > 1 else "uses"
    also = f", which also {use} the {pictures.unlabelled:,} pictures without labels" if pictures.unlabelled else ""
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
        f"chosen  images of {choice.size}×{choice.size} pixels; the shorter sides of the pictures {range_text}",
        f"chosen  teacher {teacher.model}{origin} ({measured.teacher:,} parameters), student {student.model} "
        f"({measured.student:,}){why}",
        f"chosen  the student learns from labels and with {terms}{also}",
        f"chosen  batches of {choice.batch_size}, cosine schedule",
        f"cost    {planned} of {minutes:g} minutes: {', '.join(parts)}, this measurement {spent_s / 60:.1f}",
        f"cost    about {costs.memory_mb:,.0f} MB of memory and {math.ceil(costs.disk_mb):,} MB on disk",
    ]
    if measured.student >= measured.teacher:
        lines.append(
            "Warning: the student is no smaller than the teacher; choose another one with --student or --teacher"
        )
    return lines
