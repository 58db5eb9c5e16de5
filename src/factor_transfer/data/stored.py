"""Images that stay on disk until they are needed."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from factor_transfer.data.decode import decode
from factor_transfer.errors import InputError
from factor_transfer.files import open_regular

_MOST_WORKERS = 8  # the default maximum: more rarely help, and each holds two batches in memory


class StoredImages:
    """Images on disk that are used like a tensor of all of them.

    They have a ``shape`` (N, C, H, W), the ``dtype`` uint8 and a length. Indexing with indices or a slice decodes these
    images into a tensor.

    Args:
        root: the folder of the images.
        paths: the paths of the image files, below ``root``.
        size: the height and width that images are scaled and cropped to, see ``decode``; ``None`` requires all images
            to have the size of ``like``.
        channels: the number of channels: 3 for colour, 1 for grey.
        like: the path of an image whose size all images have, if ``size`` is ``None``.
        workers: the number of processes that decode images ahead of their use, see ``ReadAhead``; ``None`` is one per
            core, up to 8.

    Raises:
        InputError: if ``like`` cannot be read.
    """

    dtype = torch.uint8
    are_encoded = True  # whether ``encoded_size`` and ``encoded`` are available

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
        self.workers = default_workers() if workers is None else workers
        self._root, self._size, self._channels, self._like = root, size, channels, like
        # One array of bytes: a million paths take about 40 MB, and are quickly sent to another process.
        self._entries: np.ndarray = np.array([os.fsencode(path.relative_to(root)) for path in paths], dtype=np.bytes_)
        height, width = (size, size) if size is not None else decode(like, size, channels).shape[:2]
        self._image = (channels, height, width)
        self._opened: bytes | None = None  # the fingerprint, once it was computed

    @property
    def shape(self) -> torch.Size:
        """The shape (N, C, H, W)."""
        return torch.Size((len(self), *self._image))

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        return self.read(index if isinstance(index, slice) else index.numpy())

    def read(self, index: np.ndarray | slice, threads: int | None = None) -> Tensor:
        """Decode some of the images.

        Args:
            index: the indices of the images, int64 (B,), or a slice.
            threads: the number of threads; ``None`` chooses it for the machine.

        Returns:
            The images, uint8 (B, C, H, W).

        Raises:
            InputError: if an image cannot be read, or has another size.
        """
        entries = self._entries[index]
        images = np.empty((len(entries), *self._image), np.uint8)

        def read(position: int) -> None:
            images[position] = self._decode(entries[position]).transpose(2, 0, 1)

        if threads == 1:
            for position in range(len(entries)):
                read(position)
        else:
            with ThreadPoolExecutor(threads) as pool:  # pillow decodes and scales outside the interpreter's lock
                for _ in pool.map(read, range(len(entries))):
                    pass  # raises the error of the first invalid image, whichever thread was faster
        return torch.from_numpy(images)

    def path(self, index: int) -> Path:
        """The path of an image file; also the name of an image in messages."""
        return self._path(self._entries[index])

    def encoded_size(self, index: int) -> int:
        """The size of an image file in bytes."""
        return self.path(index).stat().st_size

    def encoded(self, index: int, start: int = 0, count: int = -1) -> bytes:
        """The content of an image file.

        Args:
            index: the index of the image.
            start: the first byte.
            count: the largest number of bytes; -1 for all.
        """
        with open_regular(self.path(index)) as file:
            file.seek(start)
            return file.read(count)

    def subset(self, indices: Tensor) -> Self:
        """The images at ``indices`` (int64, (M,)), in that order, without reading them."""
        part = copy(self)
        part._entries = self._entries[indices.numpy()]
        part._opened = None
        return part

    def joined(self, other: "StoredImages") -> "StoredImages":
        """These images, followed by others of the same shape, without reading them."""
        return JoinedImages(self, other)

    def fingerprint(self) -> bytes:
        """The SHA-256 of the files' paths below the root, sizes and modification times, and of the decoding settings.

        It does not cover the pixels, since reading them would take as long as an epoch in each command.

        Raises:
            InputError: if a file is missing.
        """
        self._opened = self._compute_fingerprint()
        return self._opened

    def check_unchanged(self) -> None:
        """Check that the files have not changed since ``fingerprint`` was called.

        Raises:
            InputError: if a file is missing or has changed.
        """
        if self._opened is not None and self._compute_fingerprint() != self._opened:
            raise InputError(
                f"images in {self._root} were changed while they were used, so the results are not valid; run the "
                "command again to repeat what depends on them"
            )

    def _compute_fingerprint(self) -> bytes:
        digest = hashlib.sha256(repr((self._size, self._image)).encode())
        root = os.fsencode(self._root)
        for name in self._entries:
            try:
                # A path object would take three times as long, and there may be a million files.
                status = os.stat(os.path.join(root, name))  # noqa: PTH116, PTH118
            except OSError as error:
                raise InputError(f"{self._path(name)}: cannot be read: {error.strerror}") from error
            digest.update(b"%s\0%d\0%d\0" % (name, status.st_size, status.st_mtime_ns))
        return digest.digest()

    def _path(self, entry: Any) -> Path:
        return self._root / os.fsdecode(entry)

    def _decode(self, entry: Any) -> np.ndarray:
        """Decode one image, uint8 (H, W, C), and check its size."""
        pixels = self._load(entry)
        _, height, width = self._image
        if pixels.shape[:2] != (height, width):
            raise InputError(
                f"the images differ in size: {self._like} has {width}×{height} pixels, "
                f"{self._path(entry)} has {pixels.shape[1]}×{pixels.shape[0]}; data.size=… scales them to the same size"
            )
        return pixels

    def _load(self, entry: Any) -> np.ndarray:
        return decode(self._path(entry), self._size, self._channels)


class JoinedImages(StoredImages):
    """Images on disk, followed by others of the same shape, which may be stored in another way.

    Args:
        first: the first images.
        second: the images that follow.
    """

    are_encoded = False

    def __init__(self, first: StoredImages, second: StoredImages) -> None:
        self.workers, self._image = first.workers, first._image
        self._parts = first, second
        self._entries = np.arange(len(first) + len(second))

    def read(self, index: np.ndarray | slice, threads: int | None = None) -> Tensor:
        """Decode some of the images, see ``StoredImages.read``."""
        chosen = self._entries[index]
        images = torch.empty((len(chosen), *self._image), dtype=torch.uint8)
        begin = 0
        for part in self._parts:
            positions = np.flatnonzero((begin <= chosen) & (chosen < begin + len(part)))
            if len(positions):
                images[torch.from_numpy(positions)] = part.read(chosen[positions] - begin, threads)
            begin += len(part)
        return images

    def fingerprint(self) -> bytes:
        """The SHA-256 of the fingerprints of both parts, and of the order of the images."""
        parts = b"".join(part.fingerprint() for part in self._parts)
        return hashlib.sha256(parts + self._entries.tobytes()).digest()

    def check_unchanged(self) -> None:
        """Check that the images have not changed since ``fingerprint`` was called."""
        for part in self._parts:
            part.check_unchanged()


def default_workers() -> int:
    """One worker process for each processor core that this process may use, up to 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_WORKERS)
