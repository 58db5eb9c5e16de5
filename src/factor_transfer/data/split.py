"""Images and labels, and how a set of them is divided."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from factor_transfer.data.stored import StoredImages
from factor_transfer.errors import InputError


@dataclass(frozen=True)
class Split:
    """Labelled images.

    Attributes:
        images: uint8 (N, C, H, W), 0..255; in memory, or on the disk.
        labels: int64 (N,), 0 .. number of classes - 1.
    """

    images: Tensor | StoredImages
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> "Split":
        """The images at ``indices`` (int64, (M,)), in that order."""
        images = self.images[indices] if isinstance(self.images, Tensor) else self.images.subset(indices)
        return Split(images, self.labels[indices])


@dataclass(frozen=True)
class Source:
    """A data set as its files hold it.

    Attributes:
        classes: the names of the classes, in the order of the labels.
        train: the training images.
        test: reads the test images; called by evaluation on the test split alone.
        test_is_cut: whether they are cut from the same files as the training images, so that another cut would
            take images that a network was trained on.
    """

    classes: tuple[str, ...]
    train: Split
    test: Callable[[], Split]
    test_is_cut: bool = False


def stratified(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Divide samples at random, each class in proportion.

    Each class gives its share of ``count``, rounded down; what is left over goes, one each, to the
    classes with the largest remainders.

    Args:
        labels: int64 (N,).
        count: how many samples the first part gets, 0..N.
        seed: the division is a function of the labels, the count and this.

    Returns:
        The indices of the first part (count,) and of the second (N - count,), each ascending.

    Raises:
        InputError: if there are fewer than ``count`` samples.
    """
    total = len(labels)
    if not 0 <= count <= total:
        raise InputError(f"{count} samples were asked for, there are {total}")
    generator = np.random.default_rng(seed)
    values, sizes = np.unique(labels.numpy(), return_counts=True)
    shares = sizes * count // max(total, 1)
    remainders = sizes * count - shares * total
    # Sorted by remainder; among equals the earlier class first, so that nothing depends on chance.
    for position in np.argsort(-remainders, kind="stable")[: count - shares.sum()]:
        shares[position] += 1
    chosen = torch.zeros(total, dtype=torch.bool)
    for value, share in zip(values, shares, strict=True):
        members = np.flatnonzero(labels.numpy() == value)
        chosen[torch.from_numpy(generator.permutation(members)[:share])] = True
    return chosen.nonzero().flatten(), (~chosen).nonzero().flatten()
