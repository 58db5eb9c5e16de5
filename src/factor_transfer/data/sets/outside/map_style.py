"""Map-style data sets: ``dataset[index]`` is an image and its label, in any order."""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from factor_transfer.data.decode import fit
from factor_transfer.data.sets.folder import IN_MEMORY
from factor_transfer.data.split import Split
from factor_transfer.data.stored import StoredImages
from factor_transfer.errors import InputError, first_line

_SAMPLES = 256  # the number of images, evenly spaced, that identify a data set which is not held in memory


class MapStyle(Protocol):
    """A data set of pairs of an image (a PIL image, or uint8 (C, H, W) or (H, W)) and a label in 0..K-1."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class MapImages(StoredImages):
    """The images of a map-style data set, which are read when they are needed.

    Args:
        dataset: the data set.
        what: what the data set is, for messages, such as ``"the training images of module:callable"``.
        size: the height and width that images are scaled and cropped to, see ``decode``; ``None`` requires images of
            equal size.
        channels: the number of channels: 3 for colour, 1 for grey.
        workers: the number of processes that read images ahead of their use.
    """

    are_encoded = False

    def __init__(self, dataset: MapStyle, what: str, size: int | None, channels: Literal[1, 3], workers: int) -> None:
        self.workers = workers
        self._dataset, self._what, self._size, self._channels = dataset, what, size, channels
        self._entries = np.arange(len(dataset))
        self._opened: bytes | None = None
        if not len(dataset):
            raise InputError(f"{what} are none: the data set is empty")
        self._image = (channels, *self._pixels(self._sample(0)[0], 0).shape[:2])

    def read(self, index: np.ndarray | slice, threads: int | None = None) -> Tensor:
        """Read some of the images, one after the other, since a data set may not allow several threads."""
        return self.read_all(self._entries[index])[0]

    def read_all(self, indices: Iterable[int] | None = None, labels: list[int] | None = None) -> tuple[Tensor, Tensor]:
        """Read images and labels.

        Args:
            indices: the indices in the data set; ``None`` for all.
            labels: a list that the labels are appended to; ``None`` if they are not needed.
        """
        chosen = [int(index) for index in (self._entries if indices is None else indices)]
        images = np.empty((len(chosen), *self._image), np.uint8)
        found = [] if labels is None else labels
        for position, index in enumerate(chosen):
            image, label = self._sample(index)
            pixels = self._pixels(image, index)
            if pixels.shape[:2] != self._image[1:]:
                raise InputError(
                    f"{self._what} differ in size: image 0 has {self._image[2]}×{self._image[1]} pixels, image {index} "
                    f"has {pixels.shape[1]}×{pixels.shape[0]}; data.size=… scales them to the same size"
                )
            images[position] = pixels.transpose(2, 0, 1)
            if labels is not None:
                found.append(self.label(label, index))
        return torch.from_numpy(images), torch.tensor(found, dtype=torch.int64)

    def label(self, label: Any, index: int) -> int:
        """A label as an integer."""
        try:
            number = int(label)
        except (TypeError, ValueError):
            number = -1
        if number < 0 or number != label:
            raise InputError(f"{self._what}: the label of image {index} is {label!r}, expected an integer in 0..K-1")
        return number

    def labels(self) -> Tensor:
        """All labels, int64 (N,): from the data set's ``targets``, or else by reading all samples."""
        targets = getattr(self._dataset, "targets", None)
        if targets is None or len(targets) != len(self):
            targets = (self._sample(index)[1] for index in range(len(self)))
        return torch.tensor([self.label(one, index) for index, one in enumerate(targets)], dtype=torch.int64)

    def path(self, index: int) -> Path:
        """Not available, since the images are not files."""
        raise InputError(f"{self._what} are not files")

    def _compute_fingerprint(self) -> bytes:
        """The SHA-256 of the indices, and of the pixels of some images: reading all would take as long as an epoch."""
        digest = hashlib.sha256(repr(self._image).encode())
        digest.update(self._entries.astype(np.int64).tobytes())
        chosen = np.linspace(0, len(self) - 1, min(_SAMPLES, len(self))).astype(int)
        digest.update(self.read(chosen).numpy().tobytes())
        return digest.digest()

    def _sample(self, index: int) -> tuple[Any, Any]:
        try:
            image, label = self._dataset[index]
        except Exception as error:  # a data set may raise anything
            raise InputError(
                f"{self._what}: item {index} cannot be read as an image and a label: {type(error).__name__}: "
                f"{first_line(error)}"
            ) from error
        return image, label

    def _pixels(self, image: Any, index: int) -> np.ndarray:
        """The pixels of an image, uint8 (H, W, C)."""
        if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.dim() in (2, 3):
            array = image.numpy() if image.dim() == 2 else image.permute(1, 2, 0).numpy()
            if array.ndim == 3 and array.shape[2] == 1:
                array = array[:, :, 0]
            if array.ndim == 2 or array.shape[2] == 3:
                image = Image.fromarray(np.ascontiguousarray(array))
        if not isinstance(image, Image.Image) or image.mode.startswith(("I", "F")):
            given = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
            raise InputError(
                f"{self._what}: image {index} is {given}; a PIL image of 8 bits or a uint8 tensor (C, H, W) of 1 or 3 "
                "channels is needed, without random augmentation and normalisation, which the recipe describes"
            )
        return fit(image, self._size, self._channels)


def splits(
    datasets: Sequence[tuple[MapStyle, str]], size: int | None, channels: Literal[1, 3], workers: int | None
) -> list[Callable[[], Split]]:
    """Functions that read the splits of a data set, held in memory if all of them are small enough.

    Args:
        datasets: the map-style data sets, and what they are.
        size: see ``MapImages``.
        channels: see ``MapImages``.
        workers: see ``MapImages``; ``None`` for 0.
    """
    stored = [MapImages(dataset, what, size, channels, workers or 0) for dataset, what in datasets]
    in_memory = sum(math.prod(images.shape) for images in stored) < IN_MEMORY

    def read(images: MapImages) -> Split:
        return Split(*images.read_all(labels=[])) if in_memory else Split(images, images.labels())

    return [lambda images=images: read(images) for images in stored]  # type: ignore[misc]
