"""What a teacher says to each fixed view of each training image: tensors in memory-mapped files."""

import hashlib
import os
import shutil
from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from factor_transfer.errors import Diverged, InputError
from factor_transfer.files import read_json, write_json

_BYTES = 2  # bfloat16
_MARGIN = 2**28  # bytes of a disk that are left free
_PROGRESS = "progress.json"


class Store:
    """Tensors of each view of each image, in bfloat16, on disk; the views are written one after the other.

    A kill loses the view that is being written, and no more. Of each view that is written, the sum is kept.

    Args:
        folder: of its files.
        shapes: of each tensor, of one image.
        images: N.
        views: V.
    """

    def __init__(self, folder: Path, shapes: Sequence[Sequence[int]], images: int, views: int) -> None:
        self.folder, self.images, self.views = folder, images, views
        self.shapes = [tuple(shape) for shape in shapes]
        self._tensors: list[Tensor] = []

    @property
    def done(self) -> int:
        """How many views are written.

        Raises:
            InputError: what says so is damaged.
        """
        return len(self._sums())

    @property
    def nbytes(self) -> int:
        """Of all its files."""
        return sum(self._sizes()) * _BYTES

    def is_reserved(self) -> bool:
        """Whether its files are there, and as large as they should be."""
        return all(path.is_file() and path.stat().st_size == size * _BYTES for path, size in self._files())

    def reserve(self) -> None:
        """Take the room on the disk; what is there stays.

        Raises:
            InputError: there is not so much.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path, size in self._files():
                with path.open("ab") as file:
                    if hasattr(os, "posix_fallocate"):  # Linux: the disk gives the room now or never
                        os.posix_fallocate(file.fileno(), 0, size * _BYTES)
                    else:
                        file.truncate(size * _BYTES)
        except OSError as error:
            raise InputError(f"the cache {self.folder} cannot be written: {error.strerror}") from error
        self.open()

    def open(self) -> None:
        """Map its files into memory."""
        self._maps = [np.memmap(path, dtype=np.uint16, mode="r+", shape=(size,)) for path, size in self._files()]
        self._tensors = [
            torch.from_numpy(file).view(torch.bfloat16).view(self.views, self.images, *shape)
            for file, shape in zip(self._maps, self.shapes, strict=True)
        ]

    def verify(self) -> None:
        """Read all that is written once more, and see that it is what was written.

        Raises:
            InputError: it is not; it names the file and the view.
        """
        for view, sums in enumerate(self._sums()):
            for (path, _), expected, found in zip(self._files(), sums, self._digests(view), strict=True):
                if found != expected:
                    raise InputError(f"{path} is damaged in view {view + 1}")

    def write(self, view: int, indices: Tensor, values: Sequence[Tensor]) -> None:
        """Write a part of a view: tensors (B, …) of the images int64 (B,).

        Raises:
            Diverged: a value that is not finite.
        """
        for tensor, value in zip(self._tensors, values, strict=True):
            if not value.isfinite().all():
                raise Diverged("what the teacher says is not finite, so it cannot be learned from")
            tensor[view, indices.cpu()] = value.to(torch.bfloat16).cpu()

    def finish(self, view: int) -> None:
        """All of a view is written: from now on it counts."""
        if self.done <= view:
            for file in self._maps:
                file.flush()
            write_json(self.folder / _PROGRESS, {"sha256": [*self._sums(), self._digests(view)]})

    def __call__(self, indices: Tensor, views: Tensor) -> tuple[Tensor, ...]:
        """The tensors (B, …) of images int64 (B,) in views int64 (B,); float32, on the indices' device."""
        if indices.device.type == "cuda" and not self._tensors[0].is_cuda and self.nbytes < _free(indices.device) / 2:
            self._tensors = [tensor.to(indices.device) for tensor in self._tensors]  # no step waits for the host then
        where = views.to(self._tensors[0].device), indices.to(self._tensors[0].device)
        return tuple(tensor[where].to(indices.device).float() for tensor in self._tensors)

    def _sums(self) -> list[list[str]]:
        """SHA-256 of each finished view in each of its files."""
        progress = self.folder / _PROGRESS
        if not progress.exists():
            return []
        content = read_json(progress)
        sums = content.get("sha256") if isinstance(content, dict) else None
        if not isinstance(sums, list) or len(sums) > self.views:
            raise InputError(f"{progress} is damaged")
        if any(not isinstance(view, list) or len(view) != len(self.shapes) for view in sums):
            raise InputError(f"{progress} is damaged")
        return sums

    def _digests(self, view: int) -> list[str]:
        """SHA-256 of a view as its files have it now; they are read through the memory map, a page at a time."""
        return [hashlib.sha256(file.reshape(self.views, -1)[view].data).hexdigest() for file in self._maps]

    def _sizes(self) -> list[int]:
        return [self.views * self.images * prod(shape) for shape in self.shapes]

    def _files(self) -> list[tuple[Path, int]]:
        return [(self.folder / f"{index}.bin", size) for index, size in enumerate(self._sizes())]


def _free(device: torch.device) -> int:
    """Bytes of a GPU's memory."""
    return torch.cuda.mem_get_info(device)[0]


def room(folder: Path, stores: Iterable[Store]) -> None:
    """See that a disk has room for stores, before anything is written.

    Raises:
        InputError: it has not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    wanted = sum(store.nbytes for store in stores if not store.is_reserved())
    if wanted > free - _MARGIN:
        raise InputError(
            f"the cache {folder} needs {wanted / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB free; give fewer views, "
            "such as cache.views=2, or none"
        )
