"""Images without labels: all image files in one or several folders."""

import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from factor_transfer.data.decode import FORMATS, decode, read_header
from factor_transfer.data.sets.equal_images import describe_equal, equal_images
from factor_transfer.data.sets.folder import IN_MEMORY
from factor_transfer.data.sets.image_files import Skipped, list_images
from factor_transfer.data.split import UNLABELLED, Split
from factor_transfer.data.stored import StoredImages
from factor_transfer.errors import InputError, printable

_SAMPLE = 64  # the number of images whose channels are compared with those of the training images


def load_unlabelled(
    folders: Sequence[str], train: Split, size: int | None, scales: bool, workers: int | None
) -> tuple[Split, str]:
    """The images in folders of any structure, with the shape of the training images.

    Args:
        folders: the folders. Links are followed, and what is no image is skipped, as in a data set of folders.
        train: the training images. If they are in memory, so are these images, unless they are too large.
        size: the size that the training images were scaled to; ``None`` if they were not scaled.
        scales: whether the data set has a setting ``data.size``, for the message of an error.
        workers: the number of processes that decode images from the disk, see ``StoredImages``.

    Returns:
        The images, whose labels are ``UNLABELLED``, and a description of where they come from.

    Raises:
        InputError: if there is no folder or no image, an image cannot be read, or the images have another size or
            other channels than the training images.
    """
    if not folders:
        raise InputError("data.unlabelled is empty; name a folder, or omit it")
    skipped = Skipped()
    paths: list[Path] = []
    for name in folders:
        folder = Path(name).expanduser()
        if not folder.is_dir():
            what = "is not a folder" if folder.exists() else "does not exist"
            raise InputError(f"data.unlabelled: {printable(str(folder))} {what}")
        found = list_images(folder, skipped)
        if not found:
            raise InputError(f"data.unlabelled: {printable(str(folder))} has no images ({', '.join(FORMATS)})")
        paths += [path.absolute() for path in found]
    paths = list(dict.fromkeys(paths))
    channels: Literal[1, 3] = 1 if train.images.shape[1] == 1 else 3
    if size is None:
        _check_size(paths[0], train.images.shape[2:], scales)
    _check_channels(paths, train)
    root = Path(paths[0].anchor)
    stored = StoredImages(root, paths, size=size, channels=channels, like=paths[0], workers=workers)
    labels = torch.full((len(paths),), UNLABELLED)
    total = math.prod(stored.shape) + math.prod(train.images.shape)
    # Training images that were not read from files of their own can only be used in memory.
    in_memory = isinstance(train.images, Tensor) and (total < IN_MEMORY or train.files is None)
    text = ", ".join(folders) + (f"; skipped: {skipped}" if skipped.counts else "")
    return Split(stored[:] if in_memory else stored, labels, stored), text


def check_apart(unlabelled: Split, test: Split) -> None:
    """Check that no test image is among the images without labels.

    Raises:
        InputError: if there is one, by the content of the images.
    """
    if isinstance(unlabelled.images, Tensor) != isinstance(test.images, Tensor):
        if unlabelled.files is None or test.files is None:
            return  # one of them is in memory only, the other one on disk only, so they are not the same files
        unlabelled, test = (Split(split.files, split.labels) for split in (unlabelled, test) if split.files)
    found = equal_images("test", test, [unlabelled], "unlabelled")
    if found["count"]:
        raise InputError(
            f"{describe_equal(found, 'test', len(test), 'the images of data.unlabelled')}. Their accuracy would be too "
            "high; remove them from the images without labels"
        )


def _check_size(path: Path, size: Sequence[int], scales: bool) -> None:
    height, width = decode(path, None, 3).shape[:2]
    if [height, width] != list(size):
        remedy = "data.size=… scales all images to the same size" if scales else "scale them to that size first"
        raise InputError(
            f"data.unlabelled: {printable(str(path))} has {width}×{height} pixels, but the training images have "
            f"{size[1]}×{size[0]}; {remedy}"
        )


def _check_channels(paths: Sequence[Path], train: Split) -> None:
    files = train.files if isinstance(train.images, Tensor) else train.images
    known = {1 if train.images.shape[1] == 1 else 3}
    if type(files) is StoredImages:  # grey pictures can be read as if they were in colour, so the files are compared
        known = {read_header(files.path(index))[0] for index in range(0, len(files), -(-len(files) // _SAMPLE))}
    found = {read_header(path)[0] for path in islice(paths, _SAMPLE)}
    if not found & known:
        kinds = {1: "grey", 3: "in colour"}
        raise InputError(
            f"data.unlabelled: its images are {kinds[found.pop()]}, but the training images are {kinds[known.pop()]}; "
            "images without labels must look like the training images"
        )
