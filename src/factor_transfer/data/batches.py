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
    """A batch of images.

    Attributes:
        images: the images, (B, C, H, W), uint8 in 0..255 if they come from ``Batches``.
        labels: the labels, int64 (B,).
        indices: the indices of the images in their split, int64 (B,), for methods that store something per image.
        views: the index of the fixed view of each image, int64 (B,), see ``Views``; ``None`` if there are none.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor | None = None
    views: Tensor | None = None


class Batches:
    """Shuffled, augmented batches of training images.

    An epoch does not depend on earlier epochs, so a resumed training uses the same batches as an uninterrupted one.
    A last batch of a single image is dropped, since batch norm cannot compute statistics from it.

    Args:
        split: the training images.
        batch_size: the number of images per step, over all processes.
        seed: the seed of the order and the augmentation.
        augment: the random augmentation; ``None`` leaves the images unchanged.
        device: the device of the batches. Images in memory are moved there once; images on disk are decoded ahead of
            their use by other processes.
        views: the fixed views of the images, of which each epoch uses the next one; ``None`` draws new random numbers.
        rank: the rank of this process among those that share each batch, in 0..world-1.
        world: the number of processes that share each batch. The images of a batch, and their order, do not depend on
            it.

    Attributes:
        waited: the time spent waiting for the images of the current epoch, in seconds, without crops and flips. It
            includes time in which a GPU was still busy.

    Raises:
        InputError: if the batch is larger than the training set, or cannot be divided among the processes.

    Example:
        >>> from factor_transfer.data import Batches, open_data
        >>> batches = Batches(open_data("digits").train, batch_size=128, seed=0)
        >>> len(batches), next(batches.epoch(0)).images.shape
        (7, torch.Size([128, 1, 8, 8]))
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
        """The number of images in a step, counted from 0, over all processes."""
        return min(self.batch_size, len(self.labels) - step * self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch on the device, or this process's part of each.

        If a last batch has fewer than two images per process, every process gets the whole batch.

        Args:
            epoch: the epoch, counted from 0.
            start: the step to start from, counted from 0.
        """
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, epoch))
        order = torch.randperm(len(self.labels), generator=generator)
        views = None
        if self.views is None:
            draws = self.augment.draw(len(self.labels), generator).to(self.device)
        else:
            # Each image starts with a random view and cycles through all of them, so none is repeated before all are
            # used.
            first = torch.randint(
                self.views.count, (len(order),), generator=torch.Generator().manual_seed(epoch_seed(self.seed))
            )
            views = (first[order] + epoch) % self.views.count
            draws, views = self.views.draws[views, order].to(self.device), views.to(self.device)
        order = order.to(self.device)
        windows = [self._window(step) for step in range(start, len(self))]
        images = self._read([order[window] for window in windows])
        self.waited = 0.0
        for window in windows:
            began = time.perf_counter()
            raw = next(images)
            self.waited += time.perf_counter() - began
            augmented, indices = self.augment.apply(raw, draws[window]), order[window]
            yield Batch(augmented, self.labels[indices], indices, None if views is None else views[window])

    def _window(self, step: int) -> slice:
        """The part of an epoch's order that this process uses in a step."""
        begin, size = step * self.batch_size, self.size(step)
        if size < 2 * self.world:
            return slice(begin, begin + size)
        return slice(begin + size * self.rank // self.world, begin + size * (self.rank + 1) // self.world)

    def _read(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """The images of each batch, without augmentation."""
        if isinstance(self.images, Tensor):
            return map(self.images.__getitem__, parts)
        return self.images.batches(parts)


def in_order(
    split: Split, batch_size: int, device: torch.device | str = "cpu", rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """The batches of a split for evaluation: every image once, in order, without augmentation.

    Among several processes, each gets every ``world``-th batch, starting with the ``rank``-th. The batches, and so the
    outputs of a network, do not depend on the number of processes.

    Args:
        split: the images.
        batch_size: the number of images per batch.
        device: the device of the batches.
        rank: the rank of this process, in 0..world-1.
        world: the number of processes.
    """
    parts = torch.arange(len(split)).split(batch_size)[rank::world]
    images: Iterable[Tensor]
    if isinstance(split.images, Tensor):
        images = map(split.images.__getitem__, (slice(int(part[0]), int(part[-1]) + 1) for part in parts))
    else:
        images = ReadAhead(split.images, device).batches(parts)
    for part, raw in zip(parts, images, strict=True):
        yield Batch(raw.to(device), split.labels[part].to(device), part.to(device))
