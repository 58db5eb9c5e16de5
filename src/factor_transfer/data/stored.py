"""Images that stay on the disk until they are needed."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from factor_transfer.data.decode import decode
from factor_transfer.errors import InputError

_MOST_WORKERS = 8  # by default: more rarely help, and each holds two batches


class StoredImages:
    """Images on disk that are used as the tensor of all of them would be.

    It has ``shape`` (N, C, H, W), ``dtype`` uint8 and a length; what is taken from it, by indices or a slice, is
    decoded now and is a tensor.

    Args:
        root: the folder.
        paths: of the images, somewhere in ``root``.
        size: see ``decode``. Without it, all images must be as large as ``like``.
        channels: 3 for colour, 1 for grey.
        like: an image that says how large all are, if ``size`` does not.
        workers: processes that decode them ahead of their use, see ``ReadAhead``; ``None`` is one a core, up to 8.

    Raises:
        InputError: ``like`` cannot be read.
    """

    dtype = torch.uint8

    def __init__(
        self,
        root: Path,
        paths: Sequence[Path],
        *,
        size: int | None,
        channels: Literal[1, 3],
        like: Path,
        workers: int | None = None,
    ) -> None:
        self.workers = min(_cores(), _MOST_WORKERS) if workers is None else workers
        self._root, self._size, self._channels, self._like = root, size, channels, like
        # One array of bytes: a million paths are some 40 MB, and soon sent to another process.
        self._names = np.array([os.fsencode(path.relative_to(root)) for path in paths], dtype=np.bytes_)
        height, width = (size, size) if size is not None else decode(like, size, channels).shape[:2]
        self._image = (channels, height, width)
        self._opened: bytes | None = None  # the fingerprint, once that was asked for

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        return torch.Size((len(self), *self._image))

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        return self.read(index if isinstance(index, slice) else index.numpy())

    def read(self, index: np.ndarray | slice, threads: int | None = None) -> Tensor:
        """Decode some of the images.

        Args:
            index: which, int64 (B,) or a slice.
            threads: at once; as many as the machine suggests, if left out.

        Returns:
            uint8 (B, C, H, W).

        Raises:
            InputError: one cannot be read, or is of another size.
        """
        names = self._names[index]
        images = np.empty((len(names), *self._image), np.uint8)

        def read(position: int) -> None:
            images[position] = self._decode(self._path(names[position])).transpose(2, 0, 1)

        if threads == 1:
            for position in range(len(names)):
                read(position)
        else:
            with ThreadPoolExecutor(threads) as pool:  # pillow decodes and scales outside the interpreter's lock
                for _ in pool.map(read, range(len(names))):
                    pass  # raises the error of the first image that has one, whichever thread was faster
        return torch.from_numpy(images)

    def path(self, index: int) -> Path:
        """The file of one image."""
        return self._path(self._names[index])

    def subset(self, indices: Tensor) -> "StoredImages":
        """The images at ``indices`` (int64, (M,)), in that order; none is read."""
        part = copy(self)
        part._names = self._names[indices.numpy()]
        part._opened = None
        return part

    def fingerprint(self) -> bytes:
        """SHA-256 of the files' names below the root, sizes and times of modification, and of how they are decoded.

        To read all pixels would take as long as an epoch, at each command.

        Raises:
            InputError: a file is missing.
        """
        self._opened = self._look()
        return self._opened

    def check_unchanged(self) -> None:
        """See that the files are those that the fingerprint was taken of.

        Raises:
            InputError: a file is missing, or another one.
        """
        if self._opened is not None and self._look() != self._opened:
            raise InputError(
                f"images in {self._root} were changed while they were used, so what comes of them means nothing; run "
                "the command again, and what they changed for is made anew"
            )

    def _look(self) -> bytes:
        digest = hashlib.sha256(repr((self._size, self._image)).encode())
        root = os.fsencode(self._root)
        for name in self._names:
            try:
                # A path object would take thrice as long, for each of perhaps a million.
                status = os.stat(os.path.join(root, name))  # noqa: PTH116, PTH118
            except OSError as error:
                raise InputError(f"{self._path(name)}: cannot be read: {error.strerror}") from error
            digest.update(b"%s\0%d\0%d\0" % (name, status.st_size, status.st_mtime_ns))
        return digest.digest()

    def _path(self, name: bytes) -> Path:
        return self._root / os.fsdecode(name)

    def _decode(self, path: Path) -> np.ndarray:
        """One image, uint8 (H, W, C), of the size that all have."""
        pixels = decode(path, self._size, self._channels)
        _, height, width = self._image
        if pixels.shape[:2] != (height, width):
            raise InputError(
                f"the images differ in size: {self._like} has {width}×{height} pixels, "
                f"{path} has {pixels.shape[1]}×{pixels.shape[0]}; data.size=… scales them to one"
            )
        return pixels


def _cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
