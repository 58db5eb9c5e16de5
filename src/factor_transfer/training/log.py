"""What a person and a program see of a running training."""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from factor_transfer.distributed import collectives
from factor_transfer.errors import InputError
from factor_transfer.files import write_atomic

# What the figures of an epoch are called on the screen, in this order; percent where they are accuracies.
_SHOWN = {
    "loss": "loss {:.4f}",
    "relative_error": "relative error {:.3f}",
    "accuracy": "accuracy {:.2f}",
    "validation_top1": "validation top-1 {:.2f}",
    "validation_relative_error": "validation relative error {:.3f}",
    "images_per_s": "{:,.0f} images/s",
    "waiting": "waiting for images {:.0f} %",
    "skipped": "{} steps left out",
}
_LITTLE = 5.0  # percent of the time; less of waiting is not worth a word


class Display:
    """Where trainings show their progress: a row with a bar for each on a terminal, lines elsewhere.

    Args:
        console: the terminal, file or pipe that is written to.
        several: whether trainings run side by side, so that epochs of theirs are not worth a line each.
    """

    def __init__(self, console: Console, several: bool = False) -> None:
        self.console, self.several = console, several
        self._progress: Progress | None = None
        self._rows: dict[str, TaskID] = {}

    def say(self, text: str) -> None:
        """Print a line."""
        # soft_wrap: a line stays a line in a file, however narrow the console is thought to be.
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def say_once(self, text: str) -> None:
        """Print a line that is the same in all processes of a command."""
        self.say(text)

    def start(self, stage: str, total: int, completed: int) -> None:
        """Begin a row for a training of ``total`` steps, of which some may be completed."""
        if not self.console.is_terminal:
            return
        if self._progress is None:
            self._progress = _Rows(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self._progress.start()
        self._rows[stage] = self._progress.add_task(stage, total=total, completed=completed, figures="")

    def update(self, stage: str, completed: int, figures: str) -> None:
        """Show that a training has done ``completed`` steps, and its figures in words."""
        if self._progress is not None and stage in self._rows:
            self._progress.update(self._rows[stage], completed=completed, figures=figures)

    def epoch(self, text: str) -> None:
        """Print the line of a finished epoch."""
        if not (self.several and self.console.is_terminal):
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


class _Rows(Progress):
    """A bar and the time left for each training, and its figures below: 80 columns have no room for both in a line."""

    def get_renderables(self) -> Iterator[RenderableType]:
        """What is drawn."""
        for task in self.tasks:
            yield self.make_tasks_table([task])
            yield Text(f"  {task.fields['figures']}", no_wrap=True, overflow="ellipsis")


class RunLog:
    """The log of one stage: its progress for the person, and ``metrics.jsonl``.

    Of several processes the first one writes.

    Args:
        display: where progress is shown, or the console that it is shown on.
        stage: its name, for the person.
        path: the JSONL file; one object per epoch.
    """

    def __init__(self, display: Display | Console, stage: str, path: Path) -> None:
        self.display = display if isinstance(display, Display) else Display(display)
        self.stage, self.path = stage, path

    def start(self, epochs: int, steps: int, at: int) -> None:
        """Begin, or resume after ``at`` steps; lines of later epochs, if a kill left any, are dropped."""
        self.epochs, self.steps, self.first = epochs, steps, at / steps
        self.began = time.perf_counter()
        if not collectives.rank():
            lines = self.path.read_bytes().splitlines(keepends=True)[: at // steps] if self.path.exists() else []
            write_atomic(self.path, b"".join(lines))
        self.display.start(self.stage, epochs * steps, at)
        self.validation: dict[str, Any] = {}  # of the last complete epoch

    def step(self, at: int, losses: Mapping[str, float], images_per_s: float) -> None:
        """Show that ``at`` steps are done, and the losses of the running epoch."""
        epoch = (at - 1) // self.steps + 1
        figures = describe({**losses, **self.validation, "images_per_s": images_per_s})
        self.display.update(self.stage, at, f"epoch {epoch}  {figures}")

    def epoch(self, epoch: int, figures: Mapping[str, Any]) -> None:
        """Record an epoch (from 0) that is complete."""
        self.validation = {key: value for key, value in figures.items() if key.startswith("validation_")}
        if not collectives.rank():
            self._write({"stage": self.stage, "epoch": epoch + 1, **figures})
        left = (time.perf_counter() - self.began) / (epoch + 1 - self.first) * (self.epochs - epoch - 1)
        if figures.get("waiting", 0) < _LITTLE:
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
        """Remove the bar."""
        self.display.stop(self.stage)


def describe(figures: Mapping[str, Any]) -> str:
    """Figures in words: loss, its parts in brackets, and the rest."""
    parts = [f"{key[5:]} {value:.4f}" for key, value in figures.items() if key.startswith("loss_")]
    words = [form.format(figures[key]) for key, form in _SHOWN.items() if key in figures]
    if parts and words:
        words[0] += f" ({' + '.join(parts)})"
    return "  ".join(words)


def duration(seconds: float) -> str:
    """Seconds as ``h:mm:ss``."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}"
