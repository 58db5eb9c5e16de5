"""The frozen teacher, run only as far as its users need it and at the lowest cost that leaves its outputs unchanged."""

import time
from collections.abc import Iterable
from contextlib import nullcontext
from math import prod

import torch
from torch import Tensor, nn

from factor_transfer.errors import InputError
from factor_transfer.methods.base import Frozen
from factor_transfer.taps.extract import Seen, Taps, shapes
from factor_transfer.taps.fold import fold_batch_norm

# On a CPU, a batch passes through the teacher in parts whose largest feature map has at most this many elements (2 MiB
# in float32), so that a layer's output is still in the processor's cache when the next layer reads it.
_PART_ELEMENTS = 2**19


class Teacher(Frozen):
    """A frozen network that returns the features and logits that its users requested, and computes nothing else.

    Args:
        model: the network, images (B, C, H, W) -> logits (B, K).
        prepare: a module that turns a batch into the network's input, such as ``Normalize``.
        examples: a few raw images (B, C, H, W), used to make the network cheaper on its first call: its batch norms
            are folded into its convolutions (``taps/fold.py``), and on a CPU a batch is split into parts that fit the
            processor's cache. The outputs stay the same within ``fold.TOLERANCE``. Without examples, the network runs
            unchanged.
        reduced: whether to run the network in bfloat16 autocast. Features and logits are returned in float32.
    """

    module: Taps

    def __init__(
        self, model: nn.Module, prepare: nn.Module | None = None, examples: Tensor | None = None, reduced: bool = False
    ) -> None:
        super().__init__(Taps(model, (), prepare, logits=False))
        self.examples, self.reduced = examples, reduced
        self.cached: int | None = None  # images whose features fit the processor's cache; None runs a batch whole
        self.whole = False  # whether to run a batch whole although ``cached`` is set
        self.shared = False  # whether several methods use the outputs for the same batch
        self.reused_seconds = 0.0  # time of the passes that methods were spared because another one had run them
        self._prepared = False
        self._last_seconds = 0.0
        self._last: tuple[Tensor, Seen] | None = None

    def want(self, taps: Iterable[str], logits: bool) -> None:
        """Request features and logits, in addition to all earlier requests.

        Raises:
            InputError: if a call has made the network cheaper for the earlier requests alone.
        """
        if self._prepared and self.examples is not None:
            raise InputError(
                "a teacher with examples is made cheaper on its first call, for what has been requested by then; build "
                "all methods that share it before any of them is called"
            )
        old = self.module
        requested = dict.fromkeys([*old.taps, *taps])
        self.module = Taps(old.model, requested, old.prepare, old.logits or logits)
        self._last = None
        self.train(False)

    @property
    def part(self) -> int | None:
        """The number of images in each part of a batch; ``None`` if batches are not divided."""
        # Every thread has an image of each part.
        return None if self.cached is None or self.whole else max(torch.get_num_threads(), self.cached)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Seen:
        """The requested features and logits of raw images (B, C, H, W)."""
        if self.shared and self._last is not None and self._last[0] is images:
            self.reused_seconds += self._last_seconds
            return self._last[1]
        self.stay_frozen()
        self.prepare_network()
        start = time.perf_counter()
        with torch.autocast(images.device.type, torch.bfloat16) if self.reduced else nullcontext():
            if self.part is None or len(images) <= self.part:
                outputs: Seen = self.module(images)
            else:
                outputs = _concatenated([self.module(part) for part in images.split(self.part)])
        if self.reduced:
            features = {tap: feature.float() for tap, feature in outputs.features.items()}
            outputs = Seen(None if outputs.logits is None else outputs.logits.float(), features)
        if self.shared:
            self._last, self._last_seconds = (images, outputs), time.perf_counter() - start
        return outputs

    def prepare_network(self) -> None:
        """Make the network cheaper, now that all requests are known; later calls do nothing."""
        if self._prepared:
            return
        self._prepared = True
        if self.examples is None or not (self.module.taps or self.module.logits):
            return
        self.module = fold_batch_norm(self.module, self.examples[:2])
        if self.examples.device.type == "cpu":
            x = self.examples[:1] if self.module.prepare is None else self.module.prepare(self.examples[:1])
            largest = max((prod(shape) for shape in shapes(self.module.model, x).values()), default=1)
            self.cached = _PART_ELEMENTS // largest
        self.train(False)


def _concatenated(parts: list[Seen]) -> Seen:
    """The outputs for a whole batch, from those for its parts."""
    logits = [part.logits for part in parts if part.logits is not None]
    return Seen(
        torch.cat(logits) if logits else None,
        {tap: torch.cat([part.features[tap] for part in parts]) for tap in parts[0].features},
    )
