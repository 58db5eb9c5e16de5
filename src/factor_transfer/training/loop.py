"""The training loop of all methods, which have the common contract ``losses = method(images, labels)``."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from factor_transfer.data import Batch, Batches, epoch_seed
from factor_transfer.distributed import collectives
from factor_transfer.distributed.signals import StopRequest, defer_signals
from factor_transfer.errors import InputError, Interrupted
from factor_transfer.training.checkpoint import CheckpointInterval
from factor_transfer.training.trainer import Trainer

# The number of steps between the points at which processes on GPUs agree on whether to stop. Each agreement waits for
# the devices.
_AGREE_INTERVAL_STEPS = 16
_REMEDY = "The same command, without --fresh, resumes from there"


def fit(
    trainers: Sequence[Trainer], batches: Batches, accumulate: int = 1, interval: CheckpointInterval | None = None
) -> None:
    """Train one method, or several in lockstep on the same batches in the same order.

    Each trainer resumes from its current step. With several trainers, an error that ends one of them early is stored in
    its ``error`` attribute, and the others continue.

    Args:
        trainers: the trainers, with equal numbers of epochs.
        batches: the training images.
        accumulate: the number of parts that each batch is divided into. Their gradients are added up.
        interval: the interval between checkpoints.

    Raises:
        Diverged: if a loss is not finite and there is only one trainer.
        Interrupted: if a signal requested a stop. Each trainer's checkpoint is written first.
    """
    with defer_signals() as stop:
        loop = _Loop(trainers, batches, accumulate, interval or CheckpointInterval(), stop)
        try:
            first = min(trainer.at for trainer in trainers) // len(batches)
            for epoch in range(first, trainers[0].epochs):
                loop.epoch(epoch)
        except KeyboardInterrupt:  # in a thread, which cannot handle signals
            raise _interrupted(trainers, 2) from None
        finally:
            for trainer in trainers:
                trainer.stop()


class _Loop:
    """The epochs and steps of a training, with the checkpoints and stop requests between them."""

    def __init__(
        self,
        trainers: Sequence[Trainer],
        batches: Batches,
        accumulate: int,
        interval: CheckpointInterval,
        stop: StopRequest,
    ) -> None:
        self.trainers, self.batches, self.accumulate = trainers, batches, accumulate
        self.interval, self.stop = interval, stop
        self.device = trainers[0].fabric.device
        self.last_save = time.monotonic()

    def epoch(self, epoch: int) -> None:
        """Train on all images once, or on the remaining ones after resuming; then validate and save."""
        begin, end = epoch * len(self.batches), (epoch + 1) * len(self.batches)
        trainers = [trainer for trainer in self.trainers if begin <= trainer.at < end and trainer.error is None]
        for trainer in trainers:
            trainer.begin_epoch(epoch)
        start = min((trainer.at for trainer in trainers), default=end)
        requested = time.perf_counter()
        for at, batch in enumerate(self.batches.epoch(epoch, start - begin), start):
            loading_seconds = time.perf_counter() - requested
            self.step(epoch, at - begin, batch, [trainer for trainer in trainers if trainer.at == at], loading_seconds)
            trainers = [trainer for trainer in trainers if trainer.error is None]
            if not trainers:
                return
            if at + 1 < end:  # after the last step, the epoch is ended before a checkpoint is written
                self.between([trainer for trainer in trainers if trainer.at == at + 1])
            requested = time.perf_counter()
        for trainer in self.running(trainers):
            with self.contained(trainer):
                trainer.end_epoch(epoch, self.batches.waited)
        if (epoch + 1) % self.interval.epochs == 0 or epoch + 1 == self.trainers[0].epochs:
            self.save(trainers)
        self.between(trainers)

    def step(self, epoch: int, step: int, batch: Batch, trainers: Sequence[Trainer], loading_seconds: float) -> None:
        """Train each trainer on one batch."""
        images, rank, world = self.batches.size(step), self.batches.rank, self.batches.world
        # The loss of the step is the mean over processes. A batch that is too small to be divided is the same in all.
        divided = world > 1 and len(batch.labels) < images
        weight = len(batch.labels) * world / images if divided else 1.0
        parts = _divided(batch, self.accumulate)
        for index, part in enumerate(parts):
            # One seed per step, part and process, so that dropout is the same after resuming.
            position = (index, rank) if index or rank else ()
            seed = epoch_seed(self.batches.seed, epoch, step, *position)
            share = weight * len(part.labels) / len(batch.labels)
            for trainer in self.running(trainers):
                with self.contained(trainer):
                    trainer.forward_backward(part, share, seed, last=index + 1 == len(parts))
        for trainer in self.running(trainers):
            with self.contained(trainer):
                trainer.optimizer_step(images, loading_seconds)

    def between(self, trainers: Sequence[Trainer]) -> None:
        """Write checkpoints that are due after a step or an epoch, and stop if a signal requested it."""
        agreement_waits = self.batches.world > 1 and self.device.type == "cuda"
        if agreement_waits and trainers and trainers[0].at % _AGREE_INTERVAL_STEPS:
            return
        due = time.monotonic() - self.last_save > 60 * self.interval.minutes
        signal, due_anywhere = collectives.all_reduce_max([self.stop.signal, due], self.device)
        if signal or due_anywhere:
            self.save(trainers)
        if signal:
            raise _interrupted(self.trainers, signal)

    def save(self, trainers: Sequence[Trainer]) -> None:
        """Write each trainer's checkpoint."""
        for trainer in self.running(trainers):
            with self.contained(trainer):
                trainer.save()
        self.last_save = time.monotonic()

    @staticmethod
    def running(trainers: Iterable[Trainer]) -> Iterator[Trainer]:
        """The trainers without an error."""
        return (trainer for trainer in trainers if trainer.error is None)

    @contextmanager
    def contained(self, trainer: Trainer) -> Iterator[None]:
        """A context that stores an error of one of several trainers in its ``error``, so that the others continue."""
        try:
            yield
        except (InputError, RuntimeError, MemoryError) as error:
            # With several processes, the error may have occurred in one of them, and the others would wait for it.
            if len(self.trainers) == 1 or self.batches.world > 1:
                raise
            trainer.error = error


def _divided(batch: Batch, parts: int) -> list[Batch]:
    """Divide a batch into parts of nearly equal size. There are fewer parts if one would have less than two images."""
    parts = min(parts, len(batch.labels) // 2)
    if parts < 2:
        return [batch]
    split = [[None] * parts if value is None else value.tensor_split(parts) for value in batch]
    return [Batch(*part) for part in zip(*split, strict=True)]


def _interrupted(trainers: Sequence[Trainer], signal: int) -> Interrupted:
    lines = []
    for trainer in trainers:
        stage, (epoch, step) = trainer.log.stage, divmod(trainer.saved, trainer.steps)
        if trainer.saved:
            done = f"{epoch} of {trainer.epochs} epochs" + (f" and {step} of {trainer.steps} steps" if step else "")
            lines.append(f"{stage} has completed {done}, which are saved in {trainer.checkpoint}")
        else:
            lines.append(f"{stage} was stopped before its first checkpoint; nothing was saved")
    return Interrupted("\n".join(lines), signal, _REMEDY if any(trainer.saved for trainer in trainers) else "")
