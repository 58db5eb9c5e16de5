"""What a person and a program see of a running training."""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
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


class _TwoLines(Progress):
    """The bar and the time left, and the figures below: on 80 columns there is no room for both in one line."""

    def get_renderables(self) -> Iterator[RenderableType]:
        """What is drawn."""
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            yield Text(f"  {task.fields['figures']}")


class RunLog:
    """The progress of one stage: a live bar on a terminal, a line an epoch elsewhere, and ``metrics.jsonl``.

    Of several processes the first one writes.

    Args:
        console: where to show it.
        stage: its name, for the person.
        path: the JSONL file; one object an epoch.
        lead: whether it may draw a bar: of several that run side by side one only.
    """

    def __init__(self, console: Console, stage: str, path: Path, lead: bool = True) -> None:
        self.console, self.lead = console, lead
        self.stage = stage
        self.path = path
        self.progress: Progress | None = None

    def start(self, epochs: int, steps: int, at: int) -> None:
        """Begin, or go on behind ``at`` steps; lines of later epochs, if a kill left any, are dropped."""
        self.epochs, self.steps, self.first = epochs, steps, at / steps
        self.began = time.perf_counter()
        if not collectives.rank():
            lines = self.path.read_bytes().splitlines(keepends=True)[: at // steps] if self.path.exists() else []
            write_atomic(self.path, b"".join(lines))
        if self.console.is_terminal and self.lead:
            self.progress = _TwoLines(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self.progress.start()
            self.task = self.progress.add_task(self.stage, total=epochs * steps, completed=at, figures="")
        self.validation: dict[str, Any] = {}  # of the last complete epoch

    def step(self, at: int, losses: Mapping[str, float], images_per_s: float) -> None:
        """Show that ``at`` steps are done, and the losses of the running epoch."""
        if self.progress is not None:
            epoch = (at - 1) // self.steps + 1
            figures = f"epoch {epoch}  {describe({**losses, **self.validation, 'images_per_s': images_per_s})}"
            self.progress.update(self.task, completed=at, figures=figures)

    def epoch(self, epoch: int, figures: Mapping[str, Any]) -> None:
        """Record an epoch 0.. that is complete."""
        self.validation = {key: value for key, value in figures.items() if key.startswith("validation_")}
        if not collectives.rank():
            self._write({"stage": self.stage, "epoch": epoch + 1, **figures})
        left = (time.perf_counter() - self.began) / (epoch + 1 - self.first) * (self.epochs - epoch - 1)
        if figures.get("waiting", 0) < _LITTLE:
            figures = {key: value for key, value in figures.items() if key != "waiting"}
        text = f"{self.stage}  epoch {epoch + 1:>{len(str(self.epochs))}}/{self.epochs}  {describe(figures)}"
        if not self.console.is_terminal:
            # soft_wrap: a line stays a line in a file, however narrow the console is thought to be.
            self.console.print(f"{text}  {duration(left)} left", highlight=False, soft_wrap=True)

    def _write(self, record: Mapping[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror}") from error

    def say(self, text: str) -> None:
        """A line for the person."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def stop(self) -> None:
        """Take the bar away."""
        if self.progress is not None:
            self.progress.stop()


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
