"""Images and labels, and how a set of them is divided."""

from collections.abc import Callable
from dataclasses import dataclass, field

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
        files: what images in memory were decoded from, if each has a file of its own.
    """

    images: Tensor | StoredImages
    labels: Tensor
    files: StoredImages | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> "Split":
        """The images at ``indices`` (int64, (M,)), in that order."""
        images = self.images[indices] if isinstance(self.images, Tensor) else self.images.subset(indices)
        return Split(images, self.labels[indices], self.files and self.files.subset(indices))


@dataclass(frozen=True)
class Origin:
    """Where the images of a data set come from, in words for a person.

    Attributes:
        place: the folder that holds them all; empty if there is none.
        train: what holds the training images, such as ``"train/"``; empty where there is nothing to be said, as below.
        validation: what holds the validation images.
        test: what holds the test images.
        test_size: how many test images there are, if that is known before they are read.
        passed_over: what lies between the images and was not read, and how much of it.
    """

    place: str = ""
    train: str = ""
    validation: str = ""
    test: str = ""
    test_size: int | None = None
    passed_over: str = ""


@dataclass(frozen=True)
class Source:
    """A data set as its files hold it.

    Attributes:
        classes: the names of the classes, in the order of the labels.
        train: the training images.
        test: reads the test images; called by evaluation on the test split alone.
        test_is_cut: whether they are cut from the same files as the training images, so that another cut would
            take images that a network was trained on.
        validation: the validation images, if there are files of their own for them; else they are cut from the
            training images.
        origin: where the images come from.
    """

    classes: tuple[str, ...]
    train: Split
    test: Callable[[], Split]
    test_is_cut: bool = False
    validation: Split | None = None
    origin: Origin = field(default_factory=Origin)


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
