"""The log of a running training: progress on the screen, and ``metrics.jsonl`` for programs."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from factor_transfer.distributed import collectives
from factor_transfer.errors import InputError
from factor_transfer.files import write_atomic
from factor_transfer.training.loggers.epoch_loggers import EpochLoggers

# The format of an epoch's figures on the screen, in this order. Accuracies are in percent.
_FORMATS = {
    "loss": "loss {:.4f}",
    "relative_error": "relative error {:.3f}",
    "accuracy": "accuracy {:.2f}",
    "validation_top1": "validation top-1 {:.2f}",
    "validation_relative_error": "validation relative error {:.3f}",
    "images_per_s": "{:,.0f} images/s",
    "waiting": "waiting for images {:.0f} %",
    "skipped": "{} steps skipped",
}
_MIN_WAITING_PERCENT = 5.0  # of the training time; a smaller share of waiting for images is not shown


class Display:
    """The display of the progress of trainings: a row with a bar for each on a terminal, lines elsewhere.

    Args:
        console: the terminal, file or pipe that is written to.
        several: whether trainings run in several processes. Each process then has one row of a single line.
    """

    def __init__(self, console: Console, several: bool = False) -> None:
        self.console, self.several = console, several
        self._progress: Progress | None = None
        self._rows: dict[str, TaskID] = {}
        self._printed_once: set[str] = set()

    def say(self, text: str) -> None:
        """Print a line."""
        # soft_wrap: a line is not broken in a file, whatever width the console is assumed to have.
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def say_once(self, text: str) -> None:
        """Print a line that a command, or several of its processes, would print more than once."""
        if text not in self._printed_once:
            self._printed_once.add(text)
            self.say(text)

    def start(self, stage: str, total: int, completed: int) -> None:
        """Add a row for a training of ``total`` steps, of which ``completed`` are done."""
        if self.console.is_terminal:
            self._rows[stage] = self._opened().add_task(stage, total=total, completed=completed, figures="")

    def update(self, stage: str, completed: int, figures: str) -> None:
        """Show the number of completed steps of a training and its formatted figures."""
        if self._progress is not None and stage in self._rows:
            self._progress.update(self._rows[stage], completed=completed, figures=figures)

    def job(self, name: str, stages: Mapping[str, tuple[int, int]]) -> None:
        """Show the row of a process, or remove it.

        Args:
            name: the name of the process.
            stages: the completed steps and all steps of its running trainings, by stage; empty removes the row.
        """
        if not stages:
            self.stop(name)
            return
        if name not in self._rows:
            self.start(name, 1, 0)
        if self._progress is not None:
            completed, total = (sum(steps) for steps in zip(*stages.values(), strict=True))
            self._progress.update(self._rows[name], description=", ".join(stages), completed=completed, total=total)

    def epoch(self, text: str) -> None:
        """Print the line of a finished epoch."""
        self.say(text)

    def stop(self, stage: str) -> None:
        """Remove a training's row."""
        row = self._rows.pop(stage, None)
        if self._progress is None or row is None:
            return
        if self._rows:
            self._progress.remove_task(row)
        else:
            self._progress.stop()
            self._progress = None

    def _opened(self) -> Progress:
        if self._progress is None:
            name = TextColumn("[bold]{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis"))
            columns = (name, BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
            rows = Progress if self.several else _Rows
            self._progress = rows(*columns, console=self.console, transient=True)
            self._progress.start()
        return self._progress


class _Rows(Progress):
    """A bar and the time left for each training, with its figures below, because 80 columns cannot hold both."""

    def get_renderables(self) -> Iterator[RenderableType]:
        """The two lines of each training."""
        for task in self.tasks:
            yield self.make_tasks_table([task])
            yield Text(f"  {task.fields['figures']}", no_wrap=True, overflow="ellipsis")


class RunLog:
    """The log of one stage: its progress on the display, and ``metrics.jsonl``.

    With several processes, only the first one writes.

    Args:
        display: the display that shows the progress, or a console to make one for.
        stage: the name of the stage.
        path: the path of ``metrics.jsonl``, which gets one object per epoch.
        loggers: the loggers that the figures of the epochs are given to as well, see ``LoggerName``. Their files are
            beside ``path``.
        recipe: the settings of the recipe, with its name, which some loggers show.
    """

    def __init__(
        self,
        display: Display | Console,
        stage: str,
        path: Path,
        loggers: Sequence[str] = (),
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        self.display = display if isinstance(display, Display) else Display(display)
        self.stage, self.path, self.logger_names = stage, path, loggers
        self.recipe = recipe or {"name": stage}
        self.loggers: EpochLoggers | None = None

    def start(self, epochs: int, steps: int, at: int) -> None:
        """Begin the log, or resume it after ``at`` steps and drop the lines of later epochs that a kill left.

        Args:
            epochs: the number of epochs of the training.
            steps: the number of steps per epoch.
            at: the number of steps done, over all epochs.
        """
        self.epochs, self.steps, self.first, self.complete = epochs, steps, at / steps, at // steps
        if not collectives.rank():
            lines = self.path.read_bytes().splitlines(keepends=True)[: at // steps] if self.path.exists() else []
            write_atomic(self.path, b"".join(lines))
            if self.logger_names:
                records = [json.loads(line) for line in lines]
                self.loggers = EpochLoggers(self.logger_names, self.path.parent, records, self.recipe, self.say)
        self.start_time = time.perf_counter()
        self.display.start(self.stage, epochs * steps, at)
        self.validation: dict[str, Any] = {}  # of the last complete epoch

    def step(self, at: int, losses: Mapping[str, float], images_per_s: float) -> None:
        """Show the number of steps done, over all epochs, and the losses of the running epoch."""
        epoch = (at - 1) // self.steps + 1
        figures = describe({**losses, **self.validation, "images_per_s": images_per_s})
        self.display.update(self.stage, at, f"epoch {epoch}  {figures}")

    def epoch(self, epoch: int, figures: Mapping[str, Any]) -> None:
        """Write and print the figures of a complete epoch, counted from 0."""
        self.complete = epoch + 1
        self.validation = {key: value for key, value in figures.items() if key.startswith("validation_")}
        if not collectives.rank():
            self._write({"stage": self.stage, "epoch": epoch + 1, **figures})
        if self.loggers is not None:
            self.loggers.epoch(epoch, figures)
        left = (time.perf_counter() - self.start_time) / (epoch + 1 - self.first) * (self.epochs - epoch - 1)
        if figures.get("waiting", 0) < _MIN_WAITING_PERCENT:
            figures = {key: value for key, value in figures.items() if key != "waiting"}
        text = f"{self.stage}  epoch {epoch + 1:>{len(str(self.epochs))}}/{self.epochs}  {describe(figures)}"
        self.display.epoch(f"{text}  {duration(left)} left")

    def _write(self, record: Mapping[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror}") from error

    def say(self, text: str) -> None:
        """Print a line."""
        self.display.say(text)

    def stop(self) -> None:
        """Remove the progress bar, and close the other logs."""
        self.display.stop(self.stage)
        if self.loggers is not None:
            self.loggers.close(finished=self.complete == self.epochs)


def describe(figures: Mapping[str, Any]) -> str:
    """The figures of an epoch as text: the loss, its parts in brackets, and the other figures."""
    parts = [f"{key[5:]} {value:.4f}" for key, value in figures.items() if key.startswith("loss_")]
    words = [form.format(figures[key]) for key, form in _FORMATS.items() if key in figures]
    if parts and words:
        words[0] += f" ({' + '.join(parts)})"
    return "  ".join(words)


def duration(seconds: float) -> str:
    """A number of seconds in the format ``h:mm:ss``."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}"
