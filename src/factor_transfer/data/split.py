"""Images with their labels, and how a set of them is divided into splits."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from factor_transfer.data.stored import StoredImages
from factor_transfer.errors import InputError

UNLABELLED = -1  # the label of an image without one


@dataclass(frozen=True)
class Split:
    """Images with their labels.

    Attributes:
        images: the images, uint8 (N, C, H, W), in 0..255; in memory or on disk.
        labels: the labels, int64 (N,), in 0..K-1 for K classes; ``UNLABELLED`` for images without a label.
        files: the files that images in memory were decoded from, if there is one per image.
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

    def without_labels(self) -> "Split":
        """The same images, all of them without a label."""
        return Split(self.images, torch.full_like(self.labels, UNLABELLED), self.files)

    def joined(self, other: "Split") -> "Split":
        """These images, followed by those of another split: in memory if both are, otherwise on disk.

        Raises:
            InputError: if one split is on disk, and the other one has no files.
        """
        labels = torch.cat([self.labels, other.labels])
        if isinstance(self.images, Tensor) and isinstance(other.images, Tensor):
            return Split(torch.cat([self.images, other.images]), labels)
        ours, theirs = (split.files if isinstance(split.images, Tensor) else split.images for split in (self, other))
        if ours is None or theirs is None:
            raise InputError("images on disk cannot be joined with images that have no files of their own")
        return Split(ours.joined(theirs), labels)


@dataclass(frozen=True)
class Origin:
    """A description of where the images of a data set come from. Texts are empty if there is nothing to describe.

    Attributes:
        place: the folder of the data set.
        train: the origin of the training images, such as ``"train/"``.
        validation: the origin of the validation images.
        test: the origin of the test images.
        test_size: the number of test images; ``None`` if it is unknown until they are read.
        skipped: the files and folders among the images that were not read, with their numbers.
        unlabelled: the origin of the images without labels.
    """

    place: str = ""
    train: str = ""
    validation: str = ""
    test: str = ""
    test_size: int | None = None
    skipped: str = ""
    unlabelled: str = ""


@dataclass(frozen=True)
class Source:
    """A data set with the splits that its files define.

    Attributes:
        classes: the names of the classes, in the order of the labels.
        train: the training images.
        test: a function that reads the test images, called only for evaluation on them.
        test_is_cut: whether the test images are a random part of the same files as the training images, so that another
            division could test a network on images that it was trained on.
        validation: the validation images, if there are files for them; ``None`` if they are to be taken from the
            training images.
        origin: a description of where the images come from.
    """

    classes: tuple[str, ...]
    train: Split
    test: Callable[[], Split]
    test_is_cut: bool = False
    validation: Split | None = None
    origin: Origin = field(default_factory=Origin)


def stratified(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Divide samples into two parts at random, with each class in proportion.

    The first part gets each class's share of ``count``, rounded down; the remaining samples are taken, one each, from
    the classes with the largest remainders.

    Args:
        labels: the labels, int64 (N,).
        count: the number of samples in the first part, in 0..N.
        seed: the seed. The division depends only on the labels, the count and the seed.

    Returns:
        The indices of the first part (count,) and of the second (N - count,), each ascending.

    Raises:
        InputError: if there are fewer than ``count`` samples.

    Example:
        >>> import torch
        >>> from factor_transfer.data import stratified
        >>> first, second = stratified(torch.tensor([0, 0, 0, 0, 1, 1]), count=3, seed=0)
        >>> len(first), len(second)
        (3, 3)
    """
    total = len(labels)
    if not 0 <= count <= total:
        raise InputError(f"{count} samples were requested, but there are only {total}")
    generator = np.random.default_rng(seed)
    values, sizes = np.unique(labels.numpy(), return_counts=True)
    shares = sizes * count // max(total, 1)
    remainders = sizes * count - shares * total
    # A stable sort, so that the earlier one of classes with equal remainders comes first.
    for position in np.argsort(-remainders, kind="stable")[: count - shares.sum()]:
        shares[position] += 1
    chosen = torch.zeros(total, dtype=torch.bool)
    for value, share in zip(values, shares, strict=True):
        members = np.flatnonzero(labels.numpy() == value)
        chosen[torch.from_numpy(generator.permutation(members)[:share])] = True
    return chosen.nonzero().flatten(), (~chosen).nonzero().flatten()
