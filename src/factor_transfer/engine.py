"""The only loop: it trains whatever keeps the contract ``losses = method(images, labels)``."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from factor_transfer.checkpoint import State, read_training, save_training
from factor_transfer.data import Batches, epoch_seed
from factor_transfer.errors import InputError, Interrupted
from factor_transfer.methods import Losses, Method, load_trained_state, trained_state
from factor_transfer.optimization import Optimization
from factor_transfer.runlog import RunLog

# Losses are brought to the host only so often (seconds): a GPU need not wait for the screen.
_LOOK_EVERY_S = 0.5


class _NotFiniteError(Exception):
    """A loss, weights or figures that are not finite; the message says where."""


@dataclass(frozen=True)
class Selection:
    """Which epoch's weights a stage delivers.

    Attributes:
        metric: of the validation, such as ``"top1"``.
        highest: whether the highest is the best, or the lowest.
        keep: ``"best"`` on the validation split (of equals the latest), or the ``"last"`` epoch.
    """

    metric: str
    highest: bool
    keep: Literal["best", "last"]

    def better(self, figures: Mapping[str, float], best: Mapping[str, float] | None) -> bool:
        """Whether an epoch's figures replace the best so far."""
        if self.keep == "last" or best is None or self.metric not in figures:
            return True
        new, old = figures[self.metric], best[self.metric]
        return new >= old if self.highest else new <= old


@dataclass(frozen=True)
class Outcome:
    """What a training delivers.

    Attributes:
        state: of the product, from the chosen epoch.
        epoch: the chosen one, 1...
        figures: its validation figures.
        seconds: of training, over all the sittings it took.
        last: the state after the last epoch, if another was chosen.
    """

    state: State
    epoch: int
    figures: dict[str, float]
    seconds: float
    last: State | None = None


def fit(
    fabric: Fabric,
    method: Method,
    product: nn.Module,
    batches: Batches,
    *,
    epochs: int,
    optimization: Optimization,
    validate: Callable[[], dict[str, float]],
    selection: Selection,
    checkpoint: Path,
    log: RunLog,
) -> Outcome:
    """Train ``method``; go on from ``checkpoint`` if there is one.

    Args:
        fabric: device and precision.
        method: see ``methods.base``. What is not inside a ``Frozen`` is trained.
        product: the part of ``method`` that is wanted in the end, such as the student.
        batches: the training images.
        epochs: over them.
        optimization: optimiser and schedule.
        validate: figures on the validation split, after each epoch; empty if there is none.
        selection: which epoch is delivered.
        checkpoint: written after every epoch.
        log: told of every step and epoch.

    Raises:
        InputError: a loss that is not finite, or a damaged checkpoint.
        Interrupted: the person asked to stop; the last complete epoch is kept.
    """
    parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
    bare_optimizer, scheduler = optimization.build(parameters, len(batches), epochs)
    model, optimizer = fabric.setup(method, bare_optimizer)
    start, seconds, best = 0, 0.0, None
    if checkpoint.exists():
        saved = read_training(checkpoint)
        try:
            load_trained_state(method, saved["method"])
            optimizer.load_state_dict(saved["optimizer"])
            scheduler.load_state_dict(saved["scheduler"])
            start, seconds, best = saved["epoch"], saved["seconds"], Outcome(**saved["best"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"checkpoint {checkpoint} is damaged, or of another training: {str(error).splitlines()[0]}\n"
                "Add --fresh to start the stage anew"
            ) from error
    log.start(epochs, len(batches), start)
    try:
        for epoch in range(start, epochs):
            began = time.perf_counter()
            method.begin_epoch(epoch)
            figures = _train_epoch(fabric, model, optimizer, scheduler, batches, epoch, log)
            seconds += time.perf_counter() - began
            validation = validate()
            _check_finite(method, validation, epoch)
            if selection.better(validation, best.figures if best else None):
                best = Outcome(_copy(product.state_dict()), epoch + 1, validation, seconds)
            log.epoch(epoch, {**figures, **{f"validation_{key}": value for key, value in validation.items()}})
            save_training(
                checkpoint,
                {
                    "epoch": epoch + 1,
                    "seconds": seconds,
                    "method": trained_state(method),
                    "optimizer": optimizer.state_dict(),
                    "scheduler": scheduler.state_dict(),
                    "best": vars(best),
                },
            )
    except _NotFiniteError as error:
        kept = f"The last good checkpoint is kept: {checkpoint}\n" if checkpoint.exists() else ""
        raise InputError(f"{error}\n{kept}A lower learning_rate, or warmup_epochs, often helps") from None
    except KeyboardInterrupt:
        complete = read_training(checkpoint)["epoch"] if checkpoint.exists() else 0
        raise Interrupted(
            f"stopped in {log.stage}; epoch {complete} of {epochs} is kept in {checkpoint}\n"
            "The same command, without --fresh, goes on from there"
            if complete
            else f"stopped in {log.stage} before its first epoch was complete; nothing was kept of it"
        ) from None
    finally:
        log.stop()
    if best is None:
        raise InputError(f"{log.stage} has no epoch to train")
    last = None if best.epoch == epochs else _copy(product.state_dict())
    return replace(best, seconds=seconds, last=last)


def _train_epoch(
    fabric: Fabric,
    model: nn.Module,
    optimizer: Any,
    scheduler: Any,
    batches: Batches,
    epoch: int,
    log: RunLog,
) -> dict[str, float]:
    """One pass over the training images; the mean of each loss, the learning rate and the speed."""
    torch.manual_seed(epoch_seed(batches.seed, epoch))  # dropout and its like, the same on resuming
    model.train()
    history: dict[str, list[float]] = {}
    pending: list[Losses] = []  # on the device, not yet looked at
    rate = scheduler.get_last_lr()[0]
    began = looked = time.perf_counter()
    seen = 0
    for step, batch in enumerate(batches.epoch(epoch)):
        losses: Losses = model(*batch)
        fabric.backward(losses["loss"])
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()

        pending.append({name: value.detach() for name, value in losses.items()})
        seen += len(batch.labels)
        now = time.perf_counter()
        if now - looked > _LOOK_EVERY_S or step + 1 == len(batches):
            looked = now
            _look(pending, history, epoch)
            means = {name: sum(values) / len(values) for name, values in history.items()}
            log.step(epoch, step, means, seen / (now - began))
    elapsed = time.perf_counter() - began
    return {**means, "learning_rate": rate, "images_per_s": seen / elapsed, "seconds": elapsed}


def _look(pending: list[Losses], history: dict[str, list[float]], epoch: int) -> None:
    """Move ``pending`` losses into ``history``; refuse one that is not finite."""
    for name in pending[0]:
        values = torch.stack([losses[name] for losses in pending]).tolist()
        history.setdefault(name, []).extend(values)
    pending.clear()
    for step, loss in enumerate(history["loss"]):
        if not math.isfinite(loss):
            parts = ", ".join(f"{name} {values[step]:.4g}" for name, values in history.items())
            raise _NotFiniteError(f"the loss is not finite in epoch {epoch + 1}, step {step + 1}: {parts}")


def _check_finite(method: nn.Module, validation: Mapping[str, float], epoch: int) -> None:
    """Refuse an epoch whose last step broke the weights: no loss has told of it yet."""
    broken = [name for name, value in trained_state(method).items() if not value.isfinite().all()]
    broken += [f"validation {name}" for name, value in validation.items() if not math.isfinite(value)]
    if broken:
        more = ", …" if broken[3:] else ""
        raise _NotFiniteError(f"not finite at the end of epoch {epoch + 1}: {', '.join(broken[:3])}{more}")


def _copy(state: Mapping[str, Tensor]) -> State:
    return {key: value.detach().cpu().clone() for key, value in state.items()}
