"""Which epoch a training delivers, and what."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from factor_transfer.checkpoint import State


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
