"""Batches whose order and augmentation are a function of (seed, epoch)."""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from factor_transfer.data.augment import Augment
from factor_transfer.data.prefetch import ReadAhead
from factor_transfer.data.seeds import epoch_seed
from factor_transfer.data.split import Split
from factor_transfer.data.views import Views
from factor_transfer.errors import InputError


class Batch(NamedTuple):
    """Images to learn from.

    Attributes:
        images: (B, C, H, W), uint8 as they come from ``Batches``.
        labels: int64 (B,).
        indices: int64 (B,): which of the split's images they are; for what remembers something of each image.
        views: int64 (B,): which of its fixed views each image is, where there are such, see ``Views``.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor | None = None
    views: Tensor | None = None


class Batches:
    """Shuffled, augmented batches of training images.

    A run that is resumed at any epoch walks the same path, since nothing depends on earlier epochs.
    A last batch of a single image is left out: it has no statistics for batch norm to use.

    Args:
        split: the training images.
        batch_size: images a step.
        seed: of order and augmentation.
        augment: what is done to the images; ``None`` leaves them as they are.
        device: where batches are made. A split in memory is moved there once; images on the disk are decoded ahead
            by other processes, for one epoch at a time.
        views: fixed views, which an image is seen in one after the other, epoch by epoch; ``None`` draws new ones.
        rank: of several processes that share each batch, which one this is, 0...
        world: how many they are. Which images make a batch, and in what order, does not depend on it.

    Attributes:
        waited: seconds that were spent so far, in this epoch, until its images were there, before crop and flip. What a
            GPU still has to do meanwhile is not taken off.

    Raises:
        InputError: if the batch is larger than the training set, or cannot be divided among the processes.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        seed: int,
        augment: Augment | None = None,
        device: torch.device | str = "cpu",
        views: Views | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch_size > len(split):
            raise InputError(
                f"a batch of {batch_size} images is larger than the training set of {len(split)}; "
                "choose a smaller batch_size"
            )
        if batch_size % world:
            raise InputError(
                f"a batch of {batch_size} images cannot be divided among {world} processes; choose a batch_size that "
                f"is a multiple of {world}"
            )
        self.images = split.images.to(device) if isinstance(split.images, Tensor) else ReadAhead(split.images, device)
        self.labels = split.labels.to(device)
        self.batch_size = batch_size
        self.seed = seed
        self.augment = augment or Augment()
        self.device = device
        self.views = views
        self.rank, self.world = rank, world
        self.waited = 0.0

    def __len__(self) -> int:
        full, rest = divmod(len(self.labels), self.batch_size)
        return full + (rest > 1)

    def size(self, step: int) -> int:
        """Images of a step 0.. in all processes."""
        return min(self.batch_size, len(self.labels) - step * self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, on the device; of several processes, this one's part of each.

        Of a last batch with fewer than two images for each process, every process gets all.

        Args:
            epoch: 0...
            start: the step to begin with.
        """
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, epoch))
        order = torch.randperm(len(self.labels), generator=generator)
        which = None
        if self.views is None:
            draws = self.augment.draw(len(self.labels), generator).to(self.device)
        else:
            # In turn, each image from a view of its own: none comes again before all have been seen.
            first = torch.randint(
                self.views.count, (len(order),), generator=torch.Generator().manual_seed(epoch_seed(self.seed))
            )
            which = (first[order] + epoch) % self.views.count
            draws, which = self.views.draws[which, order].to(self.device), which.to(self.device)
        order = order.to(self.device)
        windows = [self._window(step) for step in range(start, len(self))]
        images = self._read([order[window] for window in windows])
        self.waited = 0.0
        for window in windows:
            began = time.perf_counter()
            raw = next(images)
            self.waited += time.perf_counter() - began
            augmented, chosen = self.augment.apply(raw, draws[window]), order[window]
            yield Batch(augmented, self.labels[chosen], chosen, None if which is None else which[window])

    def _window(self, step: int) -> slice:
        """Which places of an epoch's order this process has in a step."""
        begin, size = step * self.batch_size, self.size(step)
        if size < 2 * self.world:
            return slice(begin, begin + size)
        return slice(begin + size * self.rank // self.world, begin + size * (self.rank + 1) // self.world)

    def _read(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """The images of each batch, as they are."""
        if isinstance(self.images, Tensor):
            return map(self.images.__getitem__, parts)
        return self.images.batches(parts)


def in_order(
    split: Split, batch_size: int, device: torch.device | str = "cpu", rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """Every image of ``split`` once, in its order, not augmented: for evaluation.

    Of several processes each gets every ``world``-th batch, from the ``rank``-th on. Batches are the same for any
    number of them, and so is what a network says to each.
    """
    parts = torch.arange(len(split)).split(batch_size)[rank::world]
    images: Iterable[Tensor]
    if isinstance(split.images, Tensor):
        images = map(split.images.__getitem__, (slice(int(part[0]), int(part[-1]) + 1) for part in parts))
    else:
        images = ReadAhead(split.images, device).batches(parts)
    for part, raw in zip(parts, images, strict=True):
        yield Batch(raw.to(device), split.labels[part].to(device), part.to(device))
