"""Images that are in two splits: what is tested on them was seen in training."""

import hashlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

from torch import Tensor

from factor_transfer.data import Split, StoredImages
from factor_transfer.data.sets.image_files import printable
from factor_transfer.files import open_regular

_SAMPLE = 4096  # bytes from a file's middle that are compared before all of them are
_NAMED = 3  # pairs


def equal_images(name: str, split: Split, others: Sequence[Split]) -> dict[str, Any]:
    """Images of a split that are in others, too.

    Images in memory are equal if all their pixels are, as they are trained on; images on the disk if their files are,
    for to decode them all would take as long as an epoch.

    Args:
        name: of the split, for its images that have no file.
        split: in memory if and only if the others are.
        others: such as the training images.

    Returns:
        The ``count`` of the split's images that are also in another, and the first ``pairs``: the names of such an
        image and of the first one that equals it.

    Raises:
        InputError: a file cannot be read, or is no regular file.
    """
    pictures = [_Picture(split, index) for index in range(len(split))]
    known = [_Picture(other, index) for other in others for index in range(len(other))]
    stages = _PIXELS if isinstance(split.images, Tensor) else _FILES
    pairs = sorted(_equal(pictures, known, stages), key=lambda pair: pair[0].index)
    names = [[one.name(name), other.name("training")] for one, other in pairs[:_NAMED]]
    return {"count": len(pairs), "pairs": names}


class _Picture:
    """An image of a split."""

    __slots__ = ("index", "split")

    def __init__(self, split: Split, index: int) -> None:
        self.split, self.index = split, index

    def name(self, split: str) -> str:
        """Its file's, or else its place in the split."""
        files = self.split.files
        return f"{split} image {self.index}" if files is None else printable(str(files.path(self.index)))

    def pixels(self) -> bytes:
        """SHA-256 of them."""
        assert isinstance(self.split.images, Tensor)
        return hashlib.sha256(self.split.images[self.index].contiguous().numpy().data).digest()

    def file_size(self) -> int:
        """In bytes."""
        return self._stored.path(self.index).stat().st_size

    def sample(self) -> bytes:
        """Some bytes from the middle of its file."""
        path = self._stored.path(self.index)
        with open_regular(path) as file:
            file.seek(path.stat().st_size // 2)
            return file.read(_SAMPLE)

    def content(self) -> bytes:
        """SHA-256 of its file."""
        with open_regular(self._stored.path(self.index)) as file:
            return hashlib.file_digest(file, "sha256").digest()

    @property
    def _stored(self) -> StoredImages:
        assert isinstance(self.split.images, StoredImages)
        return self.split.images


# What equal images have in common, the cheapest first: the next is asked of those alone that are still equal.
_Stage = Callable[[_Picture], Hashable]
_PIXELS: tuple[_Stage, ...] = (_Picture.pixels,)
_FILES: tuple[_Stage, ...] = (_Picture.file_size, _Picture.sample, _Picture.content)


def _equal(
    pictures: Sequence[_Picture], known: Sequence[_Picture], stages: Sequence[_Stage]
) -> Iterator[tuple[_Picture, _Picture]]:
    """Each of the pictures that is equal to one that is known, and the first such."""
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
