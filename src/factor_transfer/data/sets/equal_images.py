"""The search for images that are in two splits, such as test images that are also training images."""

import hashlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from factor_transfer.data.split import Split
from factor_transfer.data.stored import StoredImages
from factor_transfer.errors import printable

_SAMPLE = 4096  # the number of bytes from the middle of a file that are compared before the whole file
_NAMED = 3  # the largest number of pairs that are named


def equal_images(name: str, split: Split, others: Sequence[Split], other_name: str = "training") -> dict[str, Any]:
    """Find the images of a split that are also in other splits.

    Images are equal if all their pixels are; those that are files on disk are equal if their files are, since decoding
    all of them would take as long as an epoch.

    Args:
        name: the name of the split, used for images without a file.
        split: the split; it must be in memory if and only if the others are.
        others: the other splits, such as the training images.
        other_name: their name, used for images without a file.

    Returns:
        The ``count`` of the split's images that are also in another, and the first ``pairs``: the names of such an
        image and of the first one that equals it.

    Raises:
        InputError: a file cannot be read, or is not a regular file.
    """
    pictures = [_Picture(split, index) for index in range(len(split))]
    known = [_Picture(other, index) for other in others for index in range(len(other))]
    stages = _FILES if all(map(_is_encoded, [split, *others])) else _PIXELS
    pairs = sorted(_equal(pictures, known, stages), key=lambda pair: pair[0].index)
    names = [[one.name(name), other.name(other_name)] for one, other in pairs[:_NAMED]]
    return {"count": len(pairs), "pairs": names}


def describe_equal(found: Mapping[str, Any], name: str, total: int, others: str) -> str:
    """The sentence about equal images, with the first pairs, without the full stop.

    Args:
        found: the result of ``equal_images``.
        name: the name of the split.
        total: the number of images of the split.
        others: what the other images are called, such as ``"the training images"``.
    """
    count, pairs = found["count"], [" = ".join(pair) for pair in found["pairs"]]
    named = ", ".join([*pairs, "…"] if count > len(pairs) else pairs)
    return f"{count:,} of {total:,} {name} images are among {others}, too: {named}"


class _Picture:
    """One image of a split."""

    __slots__ = ("index", "split")

    def __init__(self, split: Split, index: int) -> None:
        self.split, self.index = split, index

    def name(self, split: str) -> str:
        """The name of its file, or else its index in the split."""
        files = self.split.files
        return f"{split} image {self.index}" if files is None else printable(str(files.path(self.index)))

    def pixels(self) -> bytes:
        """The SHA-256 of its pixels."""
        image = self.split.images[self.index : self.index + 1]
        return hashlib.sha256(image.contiguous().numpy().data).digest()

    def file_size(self) -> int:
        """The size of its file in bytes."""
        return self._stored.encoded_size(self.index)

    def sample(self) -> bytes:
        """Bytes from the middle of its file."""
        return self._stored.encoded(self.index, self.file_size() // 2, _SAMPLE)

    def content(self) -> bytes:
        """The SHA-256 of its file."""
        return hashlib.sha256(self._stored.encoded(self.index)).digest()

    @property
    def _stored(self) -> StoredImages:
        assert isinstance(self.split.images, StoredImages)
        return self.split.images


def _is_encoded(split: Split) -> bool:
    return not isinstance(split.images, Tensor) and split.images.are_encoded


# Properties that equal images share, the cheapest first: each one is computed only for images that the previous ones do
# not distinguish.
_Stage = Callable[[_Picture], Hashable]
_PIXELS: tuple[_Stage, ...] = (_Picture.pixels,)
_FILES: tuple[_Stage, ...] = (_Picture.file_size, _Picture.sample, _Picture.content)


def _equal(
    pictures: Sequence[_Picture], known: Sequence[_Picture], stages: Sequence[_Stage]
) -> Iterator[tuple[_Picture, _Picture]]:
    """Pairs of a picture and the first known picture that is equal to it."""
    if not stages:
        for picture in pictures:
            yield picture, known[0]
        return
    groups: dict[Hashable, tuple[list[_Picture], list[_Picture]]] = {}
    for picture in pictures:
        groups.setdefault(stages[0](picture), ([], []))[0].append(picture)
    for other in known:
        if (group := groups.get(stages[0](other))) is not None:
            group[1].append(other)
    for some, candidates in groups.values():
        if candidates:
            yield from _equal(some, candidates, stages[1:])
