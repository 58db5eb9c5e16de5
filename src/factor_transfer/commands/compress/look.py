"""The properties of a folder of pictures: classes, splits, and the sizes of the pictures."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from factor_transfer.data import Data, open_data
from factor_transfer.data.decode import read_header
from factor_transfer.data.sets.folder import IN_MEMORY
from factor_transfer.data.stored import StoredImages
from factor_transfer.errors import InputError

_HEADERS = 200  # the largest number of pictures whose sizes are read
_DECODED = 16  # the number of pictures that are decoded to time it

# Settings that open a folder without decoding its images: they stay on disk, and mean and standard deviation are not
# computed.
UNREAD: dict[str, Any] = {"in_memory": False, "workers": 0, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}


@dataclass(frozen=True)
class Pictures:
    """The properties of a folder of pictures.

    Attributes:
        root: the folder, as an absolute path.
        classes: the number of classes.
        training: the number of training images.
        test: the number of test images.
        sides: the shorter sides of the pictures in pixels: the smallest, the median and the largest.
        channels: 1 if the pictures are grey, otherwise 3.
        decoding_s: the seconds that decoding one picture takes.
        more: the folders of pictures without labels, as absolute paths.
        unlabelled: the number of pictures in them.
    """

    root: Path
    classes: int
    training: int
    test: int
    sides: tuple[int, int, int]
    channels: Literal[1, 3]
    decoding_s: float
    more: tuple[Path, ...] = ()
    unlabelled: int = 0

    @property
    def count(self) -> int:
        """The number of all pictures but those for validation."""
        return self.training + self.test + self.unlabelled

    def in_memory(self, size: int) -> bool:
        """Whether all pictures, scaled to this size, fit into the memory that is used for images."""
        return self.count * self.channels * size**2 < IN_MEMORY


def look(folder: Path, unlabelled: Sequence[Path] = ()) -> Pictures:
    """Read the properties of a folder of pictures, decoding only a few of them.

    Args:
        folder: the folder of pictures.
        unlabelled: the folders of pictures without labels.

    Raises:
        InputError: the folder does not exist or is not a data set, see ``load_folder``.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {what}; give a folder that has one folder of pictures for each class")
    root = folder.resolve()
    data = open_data("folder", root=str(root), size=1, **UNREAD)
    stored = data.train.images
    assert isinstance(stored, StoredImages)
    indices = torch.linspace(0, len(stored) - 1, min(_HEADERS, len(stored))).long().tolist()
    headers = [read_header(stored.path(index)) for index in indices]
    sides = [side for _, side in headers]
    channels: Literal[1, 3] = 1 if all(found == 1 for found, _ in headers) else 3
    more, found = tuple(path.resolve() for path in unlabelled), 0
    if more:
        options = unread(channels) | {"channels": channels, "unlabelled": [*map(str, more)]}
        found = len(open_data("folder", root=str(root), size=1, **options).pool) - len(data.train)
    return Pictures(
        root,
        len(data.classes),
        len(data.train),
        data.origin.test_size or 0,
        (min(sides), math.floor(median(sides)), max(sides)),
        channels,
        _time_decoding(data),
        more,
        found,
    )


def unread(channels: int) -> dict[str, Any]:
    """``UNREAD`` for images with this many channels."""
    return UNREAD | {key: UNREAD[key][:channels] for key in ("mean", "std")}


def _time_decoding(data: Data) -> float:
    sample = data.train.subset(torch.linspace(0, len(data.train) - 1, min(_DECODED, len(data.train))).long())
    assert isinstance(sample.images, StoredImages)
    began = time.perf_counter()
    sample.images.read(slice(None), threads=1)
    return (time.perf_counter() - began) / len(sample)
