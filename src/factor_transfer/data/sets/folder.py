"""Images in folders, one folder a class."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from factor_transfer.data.split import Source, Split, stratified
from factor_transfer.data.stored import StoredImages
from factor_transfer.errors import InputError, suggest

IN_MEMORY = 2**32  # bytes of decoded images, training and test, that are held in memory if a recipe does not say

ENDINGS = {".jpg", ".jpeg", ".png"}


def load_folder(
    *,
    root: str,
    size: Annotated[int, Ge(1)] | None = None,
    channels: Literal[1, 3] = 3,
    test_fraction: Annotated[float, Gt(0), Lt(1)] = 0.2,
    split_seed: Annotated[int, Ge(0)] = 0,
    in_memory: bool | None = None,
    workers: Annotated[int, Ge(0)] | None = None,
) -> Source:
    """JPEG and PNG images in ``root/train/<class>/`` and ``root/test/<class>/``.

    Without a test folder, the test images are taken from ``root/train/<class>/`` or ``root/<class>/`` at
    random, each class in proportion. Folders within a class's folder belong to it; hidden files and folders,
    and files with other endings, are passed over. Classes and images are in the order of their names.

    Images are turned as their EXIF data say, and lose their transparency.

    Args:
        root: the folder.
        size: scale each image so that its shorter side has this many pixels (bilinear, antialiased), and keep
            the size×size pixels at its centre. Without it the images must be of one size, and keep it.
        channels: 3 for colour, 1 for grey.
        test_fraction: the share of test images where there is no test folder, 0..1.
        split_seed: which images those are is a function of the images' order and this.
        in_memory: decode all images once and hold them, or leave them on the disk and decode each when it is needed;
            in memory if all take less than ``IN_MEMORY``, if left out. What is trained is the same.
        workers: processes that decode images from the disk while training goes on; 0 leaves it to the training's own
            process. One a core, up to 8, if left out.

    Returns:
        The source. Of images in memory, those for training are decoded now, those for the test when asked for.

    Raises:
        InputError: if there are no classes, a class is empty or unknown to training, an image cannot be
            read, is too large to be one or of another size, or an argument is out of its range.
    """
    if size is not None and size < 1:
        raise InputError(f"data.size is {size}, expected 1 or more")
    if channels not in (1, 3):
        raise InputError(f"data.channels is {channels}, expected 1 or 3")
    if not 0 < test_fraction < 1:
        raise InputError(f"data.test_fraction is {test_fraction}, expected more than 0 and less than 1")
    if split_seed < 0:
        raise InputError(f"data.split_seed is {split_seed}, expected 0 or more")
    if workers is not None and workers < 0:
        raise InputError(f"data.workers is {workers}, expected 0 or more")
    folder = Path(root).expanduser()
    train_folder, test_folder = folder / "train", folder / "test"
    if test_folder.is_dir() and not train_folder.is_dir():
        raise InputError(f"{folder} has a folder 'test' but no folder 'train'")
    if not train_folder.is_dir():
        train_folder = folder
    classes = _classes(train_folder)
    paths, labels = _list_images(train_folder, classes)
    if test_folder.is_dir():
        for name in _classes(test_folder):
            if name not in classes:
                raise InputError(f"{test_folder / name}: a class unknown to training{suggest(name, classes)}")
        test_paths, test_labels = _list_images(test_folder, classes)
        train_paths, train_labels = paths, labels
    else:
        tested, trained = _divide(labels, test_fraction, split_seed, classes)
        test_paths, test_labels = [paths[index] for index in tested], labels[tested]
        train_paths, train_labels = [paths[index] for index in trained], labels[trained]
    train, test = (
        StoredImages(folder, some, size=size, channels=channels, like=train_paths[0], workers=workers)
        for some in (train_paths, test_paths)
    )
    if in_memory is None:
        in_memory = math.prod(train.shape) + math.prod(test.shape) < IN_MEMORY
    return Source(
        classes,
        Split(train[:] if in_memory else train, train_labels),
        lambda: Split(test[:] if in_memory else test, test_labels),
        test_is_cut=not test_folder.is_dir(),
    )


def _classes(folder: Path) -> tuple[str, ...]:
    """The names of the folders in ``folder``, sorted."""
    try:
        names = [entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error}; data.root=… names the folder of images") from error
    if not names:
        raise InputError(f"{folder}: has no folders; expected one for each class, with its images in it")
    return tuple(sorted(names))


def _list_images(folder: Path, classes: Sequence[str]) -> tuple[list[Path], Tensor]:
    """The images of each class that has a folder, and their labels, int64 (N,)."""
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        class_folder = folder / name
        if not class_folder.is_dir():
            continue  # a class may have no test images
        images = sorted(path for path in class_folder.rglob("*") if _is_image(path, class_folder))
        if not images:
            raise InputError(f"{class_folder}: has no images ({', '.join(sorted(ENDINGS))})")
        paths += images
        labels += [label] * len(images)
    return paths, torch.tensor(labels)


def _is_image(path: Path, class_folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(class_folder).parts)
    return path.suffix.lower() in ENDINGS and not hidden and path.is_file()


def _divide(labels: Tensor, fraction: float, seed: int, classes: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The indices of test and training images, with something of each class to train on."""
    count = round(fraction * len(labels))
    if count == 0:
        raise InputError(f"data.test_fraction={fraction} of {len(labels)} images leaves none for the test")
    test, train = stratified(labels, count, seed)
    left = set(labels[train].tolist())
    for label, name in enumerate(classes):
        if label not in left:
            raise InputError(f"data.test_fraction={fraction} leaves no image of class {name!r} for training")
    return test, train
