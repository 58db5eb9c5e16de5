"""Decoding of stored images in worker processes, ahead of their use in training."""

import signal
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from factor_transfer.data.stored import StoredImages
from factor_transfer.distributed.workers import begin_helper, starting_workers, worker_context
from factor_transfer.errors import InputError


class ReadAhead:
    """Batches of stored images, decoded by worker processes ahead of their use.

    The workers start with the first batch and end with this object. Only one epoch can be read at a time.

    Args:
        images: the images on disk, with the number of workers. If it is 0, this process decodes them.
        device: the device of the batches.
    """

    def __init__(self, images: StoredImages, device: torch.device | str = "cpu") -> None:
        self._images, self._device = images, torch.device(device)
        self._order: list[np.ndarray] = []
        self._loader: DataLoader[Tensor | InputError] | None = None

    def batches(self, order: Sequence[Tensor]) -> Iterator[Tensor]:
        """The batches of the given images, uint8 (B, C, H, W), on the device.

        Args:
            order: the indices of the images of each batch, int64 (B,).

        Raises:
            InputError: if an image is missing, damaged or of another size, or a worker was killed.
        """
        self._order[:] = [indices.cpu().numpy() for indices in order]
        try:
            for images in self._start():
                if isinstance(images, InputError):
                    self._loader = None  # ends the workers
                    raise images
                yield images.to(self._device, non_blocking=True)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            raise InputError(
                "a worker process that decodes images was killed, probably because memory or shared memory (/dev/shm) "
                "ran out; reduce data.workers or batch_size, or set data.workers=0 to use no worker processes"
            ) from error

    def _start(self) -> Iterator[Tensor | InputError]:
        """Start loading the batches in ``_order``; the workers persist from one epoch to the next."""
        if self._loader is None:
            self._loader = self._open()
        with starting_workers():
            return iter(self._loader)

    def _open(self) -> DataLoader[Tensor | InputError]:
        images = self._images
        workers = {
            "multiprocessing_context": worker_context(__name__),
            "persistent_workers": True,
            "worker_init_fn": _initialize_worker,
        }
        return DataLoader(
            _Decoding(images, threads=1 if images.workers else None),
            batch_size=None,  # the indices of a batch are one sample
            sampler=self._order,
            num_workers=images.workers,
            pin_memory=self._device.type == "cuda",
            # Otherwise it would draw from the default generator, and change dropout and other random numbers.
            generator=torch.Generator(),
            **(workers if images.workers else {}),
        )


class _Decoding(Dataset[Tensor | InputError]):
    """A data set whose samples are batches. An ``InputError`` is returned as a sample, not raised with a traceback."""

    def __init__(self, images: StoredImages, threads: int | None) -> None:
        self.images, self.threads = images, threads

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: np.ndarray) -> Tensor | InputError:
        try:
            return self.images.read(index, self.threads)
        except InputError as error:
            return error


def _initialize_worker(worker: int) -> None:
    """Make a worker end with the training's process, but not before it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is sent to all processes of a terminal
    begin_helper()
