"""The only loop: it trains whatever keeps the contract ``losses = method(images, labels)``."""

import time
from collections.abc import Sequence

from factor_transfer.checkpoint import read_training
from factor_transfer.data import Batches, epoch_seed
from factor_transfer.errors import InputError, Interrupted
from factor_transfer.trainee import Trainee


def fit(trainees: Sequence[Trainee], batches: Batches) -> None:
    """Train, each trainee on the same batches in the same order; each goes on from where it is.

    What ends one of several early is kept in its ``error``, and the others go on.

    Args:
        trainees: of as many epochs each. One, or several in lockstep.
        batches: the training images.

    Raises:
        InputError: a loss that is not finite, where there is one trainee.
        Interrupted: the person asked to stop; each trainee's last complete epoch is kept.
    """
    try:
        for epoch in range(min(trainee.done for trainee in trainees), trainees[0].epochs):
            _train_epoch(
                [t for t in trainees if t.done == epoch and t.error is None], batches, epoch, len(trainees) > 1
            )
    except KeyboardInterrupt:
        raise _interrupted(trainees) from None
    finally:
        for trainee in trainees:
            trainee.stop()


def _train_epoch(trainees: list[Trainee], batches: Batches, epoch: int, several: bool) -> None:
    """One pass over the training images, and what follows it."""
    for trainee in trainees:
        trainee.begin_epoch(epoch)
    asked = time.perf_counter()
    for step, batch in enumerate(batches.epoch(epoch)):
        making = time.perf_counter() - asked
        seed = epoch_seed(batches.seed, epoch, step)  # so that dropout and its like are the same on resuming
        for trainee in list(trainees):
            try:
                trainee.step(epoch, step, batch, seed, making)
            except (InputError, RuntimeError, MemoryError) as error:
                _drop(trainee, error, trainees, several)
        if not trainees:
            return
        asked = time.perf_counter()
    for trainee in list(trainees):
        try:
            trainee.end_epoch(epoch, batches.waited)
        except (InputError, RuntimeError, MemoryError) as error:
            _drop(trainee, error, trainees, several)


def _drop(trainee: Trainee, error: Exception, trainees: list[Trainee], several: bool) -> None:
    if not several:
        raise error
    trainee.error = error
    trainees.remove(trainee)


def _interrupted(trainees: Sequence[Trainee]) -> Interrupted:
    lines = []
    for trainee in trainees:
        stage, path = trainee.log.stage, trainee.checkpoint
        complete = read_training(path)["epoch"] if path.exists() else 0
        if complete:
            lines.append(f"stopped in {stage}; epoch {complete} of {trainee.epochs} is kept in {path}")
        else:
            lines.append(f"stopped in {stage} before its first epoch was complete; nothing was kept of it")
    if any(trainee.checkpoint.exists() for trainee in trainees):
        lines.append("The same command, without --fresh, goes on from there")
    return Interrupted("\n".join(lines))
