"""The only loop: it trains whatever keeps the contract ``losses = method(images, labels)``."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Gt

from factor_transfer import processes
from factor_transfer.data import Batch, Batches, epoch_seed
from factor_transfer.errors import InputError, Interrupted
from factor_transfer.signals import Asked, patiently
from factor_transfer.trainee import Trainee
from factor_transfer.training_state import is_under_way, latest_training

_AGREE_EVERY = 16  # steps


@dataclass(frozen=True, kw_only=True)
class Every:
    """When a training that runs is written down, so that a kill loses no more than that.

    Attributes:
        epochs: after each so many of them, and after the last.
        minutes: and after so many minutes, in the middle of an epoch.
    """

    epochs: Annotated[int, Ge(1)] = 1
    minutes: Annotated[float, Gt(0)] = 10.0


def fit(trainees: Sequence[Trainee], batches: Batches, accumulate: int = 1, every: Every | None = None) -> None:
    """Train, each trainee on the same batches in the same order; each goes on from where it is.

    What ends one of several early is kept in its ``error``, and the others go on.

    Args:
        trainees: of as many epochs each. One, or several in lockstep.
        batches: the training images.
        accumulate: parts that each batch is divided into; their gradients are summed up.
        every: when what was reached is written down.

    Raises:
        Diverged: a loss that is not finite, where there is one trainee.
        Interrupted: somebody asked to stop; what each trainee had reached is kept.
    """
    with patiently() as asked:
        loop = _Loop(trainees, batches, accumulate, every or Every(), asked)
        try:
            first = min(trainee.at for trainee in trainees) // len(batches)
            for epoch in range(first, trainees[0].epochs):
                loop.epoch(epoch)
        except KeyboardInterrupt:  # where signals are not ours
            raise _interrupted(trainees, 2) from None
        finally:
            for trainee in trainees:
                trainee.stop()


class _Loop:
    """Epochs and steps, and what is between them."""

    def __init__(
        self, trainees: Sequence[Trainee], batches: Batches, accumulate: int, every: Every, asked: Asked
    ) -> None:
        self.trainees, self.batches, self.accumulate = trainees, batches, accumulate
        self.every, self.asked = every, asked
        self.device = trainees[0].fabric.device
        self.saved = time.monotonic()

    def epoch(self, epoch: int) -> None:
        """One pass over the training images, or the rest of it, and what follows."""
        begin, end = epoch * len(self.batches), (epoch + 1) * len(self.batches)
        here = [trainee for trainee in self.trainees if begin <= trainee.at < end and trainee.error is None]
        for trainee in here:
            trainee.begin_epoch(epoch)
        start = min((trainee.at for trainee in here), default=end)
        asked = time.perf_counter()
        for at, batch in enumerate(self.batches.epoch(epoch, start - begin), start):
            making = time.perf_counter() - asked
            self._step(epoch, at - begin, batch, [trainee for trainee in here if trainee.at == at], making)
            here = [trainee for trainee in here if trainee.error is None]
            if not here:
                return
            if at + 1 < end:  # what follows an epoch comes first
                self._between([trainee for trainee in here if trainee.at == at + 1])
            asked = time.perf_counter()
        for trainee in here:
            self._attempt(trainee, trainee.end_epoch, epoch, self.batches.waited)
        if (epoch + 1) % self.every.epochs == 0 or epoch + 1 == self.trainees[0].epochs:
            self._save(here)
        self._between(here)

    def _step(self, epoch: int, step: int, batch: Batch, trainees: Sequence[Trainee], making: float) -> None:
        images, rank = self.batches.size(step), self.batches.rank
        # Of the loss that the processes' mean is to be; exactly 1 where all have as many.
        weight = len(batch.labels) * self.batches.world / images if self.batches.world > 1 else 1.0
        if len(batch.labels) == images:
            weight = 1.0  # of a batch too small to be divided, all have all
        parts = _divided(batch, self.accumulate)
        for index, part in enumerate(parts):
            # So that dropout and its like are the same on resuming, and differ between parts and processes.
            place = (index, rank) if index or rank else ()
            seed = epoch_seed(self.batches.seed, epoch, step, *place)
            share = weight * len(part.labels) / len(batch.labels)
            for trainee in trainees:
                self._attempt(trainee, trainee.learn, part, share, seed, index + 1 < len(parts))
        for trainee in trainees:
            self._attempt(trainee, trainee.move, images, making)

    def _between(self, trainees: Sequence[Trainee]) -> None:
        """After each step, and after each epoch: stop where that was asked for, and write down what is due."""
        # Processes with a GPU each must wait for theirs to agree on anything: not at every step.
        if self.batches.world > 1 and self.device.type == "cuda" and trainees and trainees[0].at % _AGREE_EVERY:
            return
        over = time.monotonic() - self.saved > 60 * self.every.minutes
        signal, late = processes.largest([self.asked.signal, over], self.device)
        if signal or late:
            self._save(trainees)
        if signal:
            raise _interrupted(self.trainees, signal)

    def _save(self, trainees: Sequence[Trainee]) -> None:
        for trainee in trainees:
            self._attempt(trainee, trainee.save)
        self.saved = time.monotonic()

    def _attempt(self, trainee: Trainee, act: Callable[..., None], *arguments: Any) -> None:
        if trainee.error is not None:
            return
        try:
            act(*arguments)
        except (InputError, RuntimeError, MemoryError) as error:
            # Of several processes one alone may have failed, and the others would wait for it.
            if len(self.trainees) == 1 or self.batches.world > 1:
                raise
            trainee.error = error


def _divided(batch: Batch, parts: int) -> list[Batch]:
    """A batch in so many parts, as equal as can be; fewer, if it has less than two images for each."""
    parts = min(parts, len(batch.labels) // 2)
    if parts < 2:
        return [batch]
    split = [[None] * parts if value is None else value.tensor_split(parts) for value in batch]
    return [Batch(*part) for part in zip(*split, strict=True)]


def _interrupted(trainees: Sequence[Trainee], signal: int) -> Interrupted:
    lines = []
    for trainee in trainees:
        stage, path = trainee.log.stage, trainee.checkpoint
        if is_under_way(path):
            state, _ = latest_training(path)
            step = f" and {state['step']} of {trainee.steps} steps" if state["step"] else ""
            lines.append(f"stopped in {stage}; epoch {state['epoch']} of {trainee.epochs}{step} is kept in {path}")
        else:
            lines.append(f"stopped in {stage} before its first epoch was complete; nothing was kept of it")
    if any(is_under_way(trainee.checkpoint) for trainee in trainees):
        lines.append("The same command, without --fresh, goes on from there")
    return Interrupted("\n".join(lines), signal)
