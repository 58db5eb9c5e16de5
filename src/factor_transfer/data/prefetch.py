"""Stored images, decoded in other processes while training goes on."""

import signal
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from factor_transfer.data.stored import StoredImages
from factor_transfer.distributed.workers import end_with_parent, starting_workers, worker_context
from factor_transfer.errors import InputError


class ReadAhead:
    """Batches of stored images, decoded by worker processes ahead of their use.

    The processes are started when the first batch is asked for, and end with this object. One epoch is walked at a
    time.

    Args:
        images: on disk; they say how many workers there are. With none, this process decodes.
        device: where batches go.
    """

    def __init__(self, images: StoredImages, device: torch.device | str = "cpu") -> None:
        self._images, self._device = images, torch.device(device)
        self._order: list[np.ndarray] = []
        self._loader: DataLoader[Tensor | InputError] | None = None

    def batches(self, order: Sequence[Tensor]) -> Iterator[Tensor]:
        """The images at each of ``order`` (int64, (B,)), in that order, uint8 (B, C, H, W), on the device.

        Raises:
            InputError: an image is missing, damaged or of another size, or a worker has died.
        """
        self._order[:] = [chosen.cpu().numpy() for chosen in order]
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
                "a process that decodes images was ended from outside, as happens where memory, or shared memory "
                "(/dev/shm), is short; fewer data.workers or a smaller batch_size need less, data.workers=0 needs none"
            ) from error

    def _start(self) -> Iterator[Tensor | InputError]:
        """The loader on its way through ``_order``; its workers remain from one epoch to the next."""
        if self._loader is None:
            self._loader = self._open()
        with starting_workers():
            return iter(self._loader)

    def _open(self) -> DataLoader[Tensor | InputError]:
        images = self._images
        workers = {
            "multiprocessing_context": worker_context(__name__),
            "persistent_workers": True,
            "worker_init_fn": _settle,
        }
        return DataLoader(
            _Decoding(images, threads=1 if images.workers else None),
            batch_size=None,  # the indices of a batch are one sample
            sampler=self._order,
            num_workers=images.workers,
            pin_memory=self._device.type == "cuda",
            # Else it would draw from the generator of dropout and its like, and change what is trained.
            generator=torch.Generator(),
            **(workers if images.workers else {}),
        )


class _Decoding(Dataset[Tensor | InputError]):
    """A sample is a batch; what is wrong with an image is handed over as it is, not wrapped in a traceback."""

    def __init__(self, images: StoredImages, threads: int | None) -> None:
        self.images, self.threads = images, threads

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: np.ndarray) -> Tensor | InputError:
        try:
            return self.images.read(index, self.threads)
        except InputError as error:
            return error


def _settle(worker: int) -> None:
    """In a worker, when it starts: it lives as long as the training's process, no shorter and no longer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal
    end_with_parent()
