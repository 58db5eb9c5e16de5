"""The frozen side: a network that is only looked at, as cheaply as its figures allow."""

import time
from collections.abc import Iterable
from contextlib import nullcontext
from math import prod

import torch
from torch import Tensor, nn

from factor_transfer.methods.base import Frozen
from factor_transfer.taps.extract import Seen, Taps, shapes
from factor_transfer.taps.fold import fold_batch_norm

# On a CPU a batch goes through the teacher in parts whose largest feature map has so many elements (2 MiB in float32):
# what one layer writes is then still in the cache when the next one reads it.
_PART = 2**19


class Teacher(Frozen):
    """A frozen network that hands out what its users want of it: features, logits, and no more is run.

    Args:
        model: images -> logits (B, K).
        prepare: turns a batch into its input, such as ``Normalize``.
        examples: a few raw images (B, C, H, W). With them it is made cheaper when it is first used: batch norm is
            folded into convolutions (``fold.py``), and on a CPU a batch is run in parts that fit its cache. The same
            figures come out, within ``fold.TOLERANCE``. Without them the network is run as it is.
        reduced: run it in bfloat16 where that is safe (autocast); features and logits are float32 again.
    """

    module: Taps

    def __init__(
        self, model: nn.Module, prepare: nn.Module | None = None, examples: Tensor | None = None, reduced: bool = False
    ) -> None:
        super().__init__(Taps(model, (), prepare, logits=False))
        self.examples, self.reduced = examples, reduced
        self.part: int | None = None  # images that are run at once
        self.whole = False  # whether it is to run all at once nevertheless
        self.shared = False  # whether several methods ask for the same batch
        self.borrowed = 0.0  # seconds that answering again would have taken, of those who asked later
        self._settled = False
        self._took = 0.0
        self._last: tuple[Tensor, Seen] | None = None

    def want(self, taps: Iterable[str], logits: bool) -> None:
        """Ask for features and logits; what others asked for before is handed out, too.

        Raises:
            RuntimeError: it is in use already.
        """
        if self._settled:
            raise RuntimeError("a teacher must be asked for features before it is used")
        old = self.module
        wanted = dict.fromkeys([*old.taps, *taps])
        self.module = Taps(old.model, wanted, old.prepare, old.logits or logits)
        self.train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Seen:
        """What it says to raw images (B, C, H, W)."""
        if self.shared and self._last is not None and self._last[0] is images:
            self.borrowed += self._took
            return self._last[1]
        self.settle()
        began = time.perf_counter()
        with torch.autocast(images.device.type, torch.bfloat16) if self.reduced else nullcontext():
            if self.part is None or self.whole or len(images) <= self.part:
                seen: Seen = self.module(images)
            else:
                seen = _joined([self.module(part) for part in images.split(self.part)])
        if self.reduced:
            seen = Seen(_full(seen.logits), {tap: feature.float() for tap, feature in seen.features.items()})
        if self.shared:
            self._last, self._took = (images, seen), time.perf_counter() - began
        return seen

    def settle(self) -> None:
        """Make the network cheaper to run, once it is known which taps are needed; later calls do nothing."""
        if self._settled:
            return
        self._settled = True
        if self.examples is None or not (self.module.taps or self.module.logits):
            return
        self.module = fold_batch_norm(self.module, self.examples[:2])
        if self.examples.device.type == "cpu":
            x = self.examples[:1] if self.module.prepare is None else self.module.prepare(self.examples[:1])
            largest = max((prod(shape) for shape in shapes(self.module.model, x).values()), default=1)
            self.part = max(torch.get_num_threads(), _PART // largest)
        self.train(False)


def _full(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.float()


def _joined(parts: list[Seen]) -> Seen:
    """What was said to the parts of a batch, as if said at once."""
    logits = [part.logits for part in parts if part.logits is not None]
    return Seen(
        torch.cat(logits) if logits else None,
        {tap: torch.cat([part.features[tap] for part in parts]) for tap in parts[0].features},
    )
