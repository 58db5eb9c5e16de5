"""Memory-mapped files with the outputs of a teacher for each fixed view of each training image."""

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
    """Tensors of each view of each image, in bfloat16 on disk; the views are written one after the other.

    A kill loses only the view that is being written. The checksum of each finished view is stored.

    Args:
        folder: the folder of the files.
        shapes: the shape of each tensor, for one image.
        images: the number of images N.
        views: the number of views V.
    """

    def __init__(self, folder: Path, shapes: Sequence[Sequence[int]], images: int, views: int) -> None:
        self.folder, self.images, self.views = folder, images, views
        self.shapes = [tuple(shape) for shape in shapes]
        self._tensors: list[Tensor] = []

    @property
    def done(self) -> int:
        """The number of finished views.

        Raises:
            InputError: if the record of the finished views is damaged.
        """
        return len(self._sums())

    @property
    def nbytes(self) -> int:
        """The size of all files in bytes."""
        return sum(self._sizes()) * _BYTES

    def is_reserved(self) -> bool:
        """Whether all files exist and have their full size."""
        return all(path.is_file() and path.stat().st_size == size * _BYTES for path, size in self._files())

    def reserve(self) -> None:
        """Reserve the room on the disk; the content of existing files stays.

        Raises:
            InputError: if the disk has too little room.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path, size in self._files():
                with path.open("ab") as file:
                    if hasattr(os, "posix_fallocate"):  # on Linux, the room is taken now
                        os.posix_fallocate(file.fileno(), 0, size * _BYTES)
                    else:
                        file.truncate(size * _BYTES)
        except OSError as error:
            raise InputError(f"the cache {self.folder} cannot be written: {error.strerror}") from error
        self.open()

    def open(self) -> None:
        """Map the files into memory."""
        self._maps = [np.memmap(path, dtype=np.uint16, mode="r+", shape=(size,)) for path, size in self._files()]
        self._tensors = [
            torch.from_numpy(file).view(torch.bfloat16).view(self.views, self.images, *shape)
            for file, shape in zip(self._maps, self.shapes, strict=True)
        ]

    def verify(self) -> None:
        """Compare all finished views with their checksums.

        Raises:
            InputError: if a view is damaged; the message names the file and the view.
        """
        for view, sums in enumerate(self._sums()):
            for (path, _), expected, found in zip(self._files(), sums, self._digests(view), strict=True):
                if found != expected:
                    raise InputError(f"{path} is damaged in view {view + 1}")

    def write(self, view: int, indices: Tensor, values: Sequence[Tensor]) -> None:
        """Write a part of a view: tensors (B, …) of the images int64 (B,).

        Raises:
            Diverged: if a value is not finite.
        """
        for tensor, value in zip(self._tensors, values, strict=True):
            if not value.isfinite().all():
                raise Diverged("the teacher's outputs are not finite, so no student can learn from them")
            tensor[view, indices.cpu()] = value.to(torch.bfloat16).cpu()

    def finish(self, view: int) -> None:
        """Mark a view as finished, after all of it was written."""
        if self.done <= view:
            for file in self._maps:
                file.flush()
            write_json(self.folder / _PROGRESS, {"sha256": [*self._sums(), self._digests(view)]})

    def __call__(self, indices: Tensor, views: Tensor) -> tuple[Tensor, ...]:
        """The tensors (B, …) of images int64 (B,) in views int64 (B,); float32, on the device of the indices."""
        if indices.device.type == "cuda" and not self._tensors[0].is_cuda and self.nbytes < _free(indices.device) / 2:
            self._tensors = [tensor.to(indices.device) for tensor in self._tensors]  # then no step waits for the host
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
        """SHA-256 of the current content of a view, one per file; it is read through the memory map, page by page."""
        return [hashlib.sha256(file.reshape(self.views, -1)[view].data).hexdigest() for file in self._maps]

    def _sizes(self) -> list[int]:
        return [self.views * self.images * prod(shape) for shape in self.shapes]

    def _files(self) -> list[tuple[Path, int]]:
        return [(self.folder / f"{index}.bin", size) for index, size in enumerate(self._sizes())]


def _free(device: torch.device) -> int:
    """The free memory of a GPU, in bytes."""
    return torch.cuda.mem_get_info(device)[0]


def check_room(folder: Path, stores: Iterable[Store]) -> None:
    """Check that a disk has room for stores, before anything is written.

    Raises:
        InputError: if it has too little.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    wanted = sum(store.nbytes for store in stores if not store.is_reserved())
    if wanted > free - _MARGIN:
        raise InputError(
            f"the cache {folder} needs {wanted / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB free; give fewer views, "
            "such as cache.views=2, or none"
        )
