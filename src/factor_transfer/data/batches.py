"""Batches whose order and augmentation are a function of (seed, epoch)."""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from factor_transfer.data.augment.crops import Augment
from factor_transfer.data.augment.mixing import Mixing
from factor_transfer.data.prefetch import ReadAhead
from factor_transfer.data.seeds import epoch_seed
from factor_transfer.data.split import Split
from factor_transfer.data.views import Views
from factor_transfer.errors import InputError


class Batch(NamedTuple):
    """A batch of images.

    Attributes:
        images: the images, (B, C, H, W), uint8 in 0..255 if they come from ``Batches``.
        labels: the labels, int64 (B,); of mixed images the probabilities of the classes, float32 (B, K).
        indices: the indices of the images in their split, int64 (B,), for methods that store something per image.
        views: the index of the fixed view of each image, int64 (B,), see ``Views``; ``None`` if there are none.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor | None = None
    views: Tensor | None = None

    def select(self, rows: Tensor | slice) -> "Batch":
        """Some of the images, with all that belongs to them.

        Args:
            rows: the positions of the images in the batch, int64 (M,), or a slice.
        """
        indices, views = (None if value is None else value[rows] for value in (self.indices, self.views))
        return Batch(self.images[rows], self.labels[rows], indices, views)


_LEAST_LABELLED = 8  # the least number of labelled images in a batch, unless it is smaller than twice that


@dataclass(frozen=True)
class Mixture:
    """The composition of batches of labelled and unlabelled images.

    An epoch is a pass over the kind of image that takes more steps; the images of the other kind are used several
    times in it. Over a whole training, all images of a kind are used equally often.

    Attributes:
        labelled: the number of labelled images, which are the first ones of the split.
        unlabelled: the number of unlabelled images.
        batch_size: the number of images per batch, over all processes.
        labelled_per_batch: the number of labelled images per batch.
        steps: the number of batches per epoch.
    """

    labelled: int
    unlabelled: int
    batch_size: int
    labelled_per_batch: int
    steps: int

    @property
    def unlabelled_per_batch(self) -> int:
        """The number of unlabelled images per batch."""
        return self.batch_size - self.labelled_per_batch

    @property
    def labelled_share(self) -> float:
        """The share of labelled images in a batch, in 0..1."""
        return self.labelled_per_batch / self.batch_size

    def fewest_labelled(self, parts: int) -> int:
        """The least number of labelled images in a part of a batch that is divided into equal parts."""
        return self.labelled_per_batch // parts

    def labelled_alone(self, parts: int = 1) -> "Mixture":
        """The composition of as many batches without unlabelled images.

        Args:
            parts: the number of equal parts that each batch is divided into. If there are fewer labelled images than a
                batch has, a batch has as many of them as can be divided.

        Raises:
            InputError: if there are fewer labelled images than parts.
        """
        size = min(self.batch_size, self.labelled // parts * parts)
        if not size:
            raise InputError(f"{self.labelled} labelled images cannot be divided into {parts} parts of a batch")
        return replace(self, unlabelled=0, batch_size=size, labelled_per_batch=size)

    def order(self, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        """The images of an epoch: their indices, and how often each was used before, int64 (steps * batch_size,) each.

        The labelled images are spread evenly over each batch, so that each part of it has its share of them.

        Args:
            seed: the seed of the training.
            epoch: the epoch, counted from 0.
        """
        place = torch.arange(self.batch_size + 1) * self.labelled_per_batch // self.batch_size
        is_labelled = place[1:] > place[:-1]  # (batch_size,)
        order, passes = torch.empty(2, self.steps, self.batch_size, dtype=torch.int64)
        for kind, (mask, count, first) in enumerate(
            ((is_labelled, self.labelled, 0), (~is_labelled, self.unlabelled, self.labelled))
        ):
            shape = self.steps, int(mask.sum())
            used = math.prod(shape)
            indices, rounds = _endless(epoch_seed(seed, kind, 0), count, epoch * used, (epoch + 1) * used)
            order[:, mask], passes[:, mask] = first + indices.view(shape), rounds.view(shape)
        return order.flatten(), passes.flatten()


def mix(labelled: int, unlabelled: int, batch_size: int, share: float | None = None) -> Mixture:
    """Choose the composition of batches.

    Args:
        labelled: the number of labelled images.
        unlabelled: the number of unlabelled images.
        batch_size: the number of images per batch, at least 2.
        share: the share of unlabelled images in a batch, between 0 and 1. By default all images are used about equally
            often, but at least 8 images of a batch are labelled, or half of a smaller batch.

    Raises:
        InputError: if a batch would have no image of one kind, or more labelled images than there are.

    Example:
        >>> from factor_transfer.data.batches import mix
        >>> mix(labelled=600, unlabelled=53400, batch_size=128).labelled_per_batch
        8
        >>> mix(labelled=600, unlabelled=53400, batch_size=128, share=0.5).steps
        835
    """
    if share is None:
        most = batch_size - min(_LEAST_LABELLED, batch_size // 2)
        others = min(max(round(batch_size * unlabelled / (labelled + unlabelled)), 1), most)
    else:
        others = round(batch_size * share)
    with_label = batch_size - others
    if min(others, with_label) < 1:
        raise InputError(
            f"a batch of {batch_size} images with a share of {others / batch_size:g} unlabelled ones has none of one "
            "kind; choose another student.unlabelled_share, or a larger student.batch_size"
        )
    for kind, needed, available in (("labelled", with_label, labelled), ("unlabelled", others, unlabelled)):
        if needed > available:
            raise InputError(
                f"a batch would have {needed} {kind} images, but there are only {available}; choose a smaller "
                "student.batch_size, or another student.unlabelled_share"
            )
    steps = max(math.ceil(labelled / with_label), math.ceil(unlabelled / others))
    return Mixture(labelled, unlabelled, batch_size, with_label, steps)


def _endless(seed: int, count: int, begin: int, end: int) -> tuple[Tensor, Tensor]:
    """A window of an endless sequence of random orders of ``count`` images: indices, and the number of each order."""
    first, last = begin // max(count, 1), max(end - 1, begin) // max(count, 1)
    orders = [
        torch.randperm(count, generator=torch.Generator().manual_seed(epoch_seed(seed, order)))
        for order in range(first, last + 1)
    ]
    window = slice(begin - first * count, end - first * count)
    return torch.cat(orders)[window], torch.arange(first, last + 1).repeat_interleave(count)[window]


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
        mixture: the composition of the batches, if some images of ``split`` have no label; its batch size replaces
            ``batch_size``.
        mixing: the mixing of the images of each batch; ``None`` leaves them as they are. Each process mixes the images
            of its part.

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
        mixture: Mixture | None = None,
        mixing: Mixing | None = None,
    ) -> None:
        if mixture is not None:
            batch_size = mixture.batch_size
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
        self.mixture, self.mixing = mixture, mixing
        self.waited = 0.0

    def __len__(self) -> int:
        if self.mixture is not None:
            return self.mixture.steps
        full, rest = divmod(len(self.labels), self.batch_size)
        return full + (rest > 1)

    def size(self, step: int) -> int:
        """The number of images in a step, counted from 0, over all processes."""
        if self.mixture is not None:
            return self.batch_size
        return min(self.batch_size, len(self.labels) - step * self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch on the device, or this process's part of each.

        If a last batch has fewer than two images per process, every process gets the whole batch.

        Args:
            epoch: the epoch, counted from 0.
            start: the step to start from, counted from 0.
        """
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, epoch))
        if self.mixture is None:
            order, used = torch.randperm(len(self.labels), generator=generator), torch.tensor(epoch)
        else:
            order, used = self.mixture.order(self.seed, epoch)
        views = None
        if self.views is None:
            draws = self.augment.draw(len(order), generator).to(self.device)
        else:
            # Each image starts with a random view and cycles through all of them, so none is repeated before all are
            # used.
            first = torch.randint(
                self.views.count, (len(self.labels),), generator=torch.Generator().manual_seed(epoch_seed(self.seed))
            )
            views = (first[order] + used) % self.views.count
            draws, views = self.views.draws[views, order].to(self.device), views.to(self.device)
        order = order.to(self.device)
        windows = [self._window(step) for step in range(start, len(self))]
        images = self._read([order[window] for window in windows])
        self.waited = 0.0
        for step, window in enumerate(windows, start):
            began = time.perf_counter()
            raw = next(images)
            self.waited += time.perf_counter() - began
            augmented, indices = self.augment.apply(raw, draws[window]), order[window]
            labels = self.labels[indices]
            if self.mixing is not None:
                augmented, labels = self.mixing(augmented, labels, epoch_seed(self.seed, epoch, step))
            yield Batch(augmented, labels, indices, None if views is None else views[window])

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
