"""What a folder of pictures holds: classes, splits, and how large the pictures are."""

import math
import time
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

_HEADERS = 200  # pictures whose sizes are looked at
_DECODED = 16  # pictures that decoding is timed with

# While a folder is only looked at, nothing is decoded that need not be: its images stay on the disk, and mean and
# standard deviation are not measured.
UNREAD: dict[str, Any] = {"in_memory": False, "workers": 0, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}


@dataclass(frozen=True)
class Pictures:
    """A folder of pictures, looked at.

    Attributes:
        root: the folder, as an absolute path.
        classes: the number of classes.
        training: the number of training images.
        test: the number of test images.
        sides: the shorter sides of the pictures in pixels: the smallest, the median and the largest.
        channels: 1 if the pictures are grey, otherwise 3.
        decoding_s: the seconds that decoding one picture takes.
    """

    root: Path
    classes: int
    training: int
    test: int
    sides: tuple[int, int, int]
    channels: Literal[1, 3]
    decoding_s: float

    def in_memory(self, size: int) -> bool:
        """Whether all pictures, scaled to this size, are held in memory."""
        return (self.training + self.test) * self.channels * size**2 < IN_MEMORY


def look(folder: Path) -> Pictures:
    """Look at a folder of pictures; no more of them are decoded than it takes to time it.

    Raises:
        InputError: there is no such folder, or it is no data set (see ``load_folder``).
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {what}; give a folder that has one folder of pictures for each class")
    root = folder.resolve()
    data = open_data("folder", root=str(root), size=1, **UNREAD)
    stored = data.train.images
    assert isinstance(stored, StoredImages)
    chosen = torch.linspace(0, len(stored) - 1, min(_HEADERS, len(stored))).long().tolist()
    headers = [read_header(stored.path(index)) for index in chosen]
    sides = [side for _, side in headers]
    return Pictures(
        root,
        len(data.classes),
        len(data.train),
        data.origin.test_size or 0,
        (min(sides), math.floor(median(sides)), max(sides)),
        1 if all(channels == 1 for channels, _ in headers) else 3,
        _time_decoding(data),
    )


def _time_decoding(data: Data) -> float:
    some = data.train.subset(torch.linspace(0, len(data.train) - 1, min(_DECODED, len(data.train))).long())
    assert isinstance(some.images, StoredImages)
    began = time.perf_counter()
    some.images.read(slice(None), threads=1)
    return (time.perf_counter() - began) / len(some)
