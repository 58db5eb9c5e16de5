"""Images in folders, one folder per class."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from factor_transfer.data.decode import FORMATS
from factor_transfer.data.sets.image_files import (
    Skipped,
    class_name,
    folder_names,
    holds_images,
    list_folders,
    list_images,
)
from factor_transfer.data.split import Origin, Source, Split, stratified
from factor_transfer.data.stored import StoredImages
from factor_transfer.errors import InputError, printable, suggest

IN_MEMORY = 2**32  # the largest size of the decoded images, in bytes, that are held in memory by default

Folders = dict[str, list[Path]]  # by the names of classes, see ``list_folders``

# The names of splits, in lower case; "train_set", "test-images" and "val2017" are recognised, too.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_NAME = re.compile(rf"({'|'.join(SPLITS)})([-_. ]?(set|data|split|images|imgs|pictures|\d+))*")


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
    """Images in ``root/train/<class>/``, ``root/val/<class>/`` and ``root/test/<class>/``.

    Splits are recognised by their usual names, in upper or lower case: train, training; val, valid, validation, dev;
    test, testing. If there is no validation folder, ``open_data`` takes a part of the training images. If there is no
    test folder, the test images are a random part of ``root/train/<class>/`` or ``root/<class>/``, stratified by class.
    Folders inside the folder of a class belong to that class, and links to folders are followed. Hidden and system
    files and folders, and files that are not images (see ``decode.FORMATS``), are skipped and counted. Classes and
    images are sorted by name; names of classes are compared in Unicode's normal form C. See docs/data.md for details.

    Images are rotated according to their EXIF data, and their transparency is removed.

    Args:
        root: the folder of the data set.
        size: the number of pixels that the shorter side of each image is scaled to (bilinear, antialiased), before the
            size×size pixels at the centre are cropped. By default all images must have the same size, which is kept.
        channels: the number of channels: 3 for colour, 1 for grey.
        test_fraction: the fraction of test images if there is no test folder, in 0..1.
        split_seed: the seed that selects these test images. The selection also depends on the order of the images.
        in_memory: whether to decode all images once and hold them in memory, instead of decoding each when it is
            needed. By default they are in memory if they take less than ``IN_MEMORY``. The results of training are the
            same.
        workers: the number of processes that decode images from the disk during training; 0 decodes them in the
            process that trains. The default is one per core, up to 8.

    Returns:
        The data set. If images are held in memory, training images are decoded now, and test images when requested.

    Raises:
        InputError: if there are no classes, a class is empty or has no training images, folders cannot be identified as
            splits or classes, a name is not UTF-8, an image cannot be read, is too large or has another size, or an
            argument is out of range.
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
    skipped = Skipped()
    splits, others = _find_splits(list_folders(folder, skipped))
    top = splits.get("train", folder)
    class_folders = list_folders(top, skipped) if splits else others
    _check_classes(top, class_folders)
    if splits:
        _check_others(folder, splits, others, class_folders, skipped)
    _check_distinct(splits, class_folders)
    classes = tuple(sorted(class_folders))
    train_paths, train_labels = _list_images(classes, class_folders, skipped)
    listed = {name: _list_split(splits[name], classes, skipped) for name in splits if name != "train"}
    train_folder = f"{top.name or top}/"
    split_folders = {name: f"{splits[name].name}/" for name in splits}
    origin = Origin(str(folder), train_folder, split_folders.get("validation", ""), split_folders.get("test", ""))
    if "test" not in listed:
        test, train = divide(train_labels, test_fraction, split_seed, classes)
        listed["test"] = [train_paths[index] for index in test], train_labels[test]
        train_paths, train_labels = [train_paths[index] for index in train], train_labels[train]
        origin = replace(origin, test=f"{100 * test_fraction:.3g} % of {train_folder}, as there is no test folder")
    origin = replace(origin, test_size=len(listed["test"][0]), skipped=str(skipped))
    listed["train"] = train_paths, train_labels
    stored = {
        name: StoredImages(folder, paths, size=size, channels=channels, like=train_paths[0], workers=workers)
        for name, (paths, _) in listed.items()
    }
    labels = {name: labels for name, (_, labels) in listed.items()}
    return stored_source(classes, stored, labels, in_memory, "test" not in splits, origin)


def stored_source(
    classes: tuple[str, ...],
    stored: Mapping[str, StoredImages],
    labels: Mapping[str, Tensor],
    in_memory: bool | None,
    test_is_cut: bool,
    origin: Origin,
) -> Source:
    """A data set of images on disk, which may be decoded into memory.

    Args:
        classes: the names of the classes.
        stored: the images of the splits ``"train"`` and ``"test"``, and of ``"validation"`` if there is one.
        labels: the labels of each split, int64 (N,).
        in_memory: whether to hold the images in memory; ``None`` does so if they take less than ``IN_MEMORY``.
        test_is_cut: see ``Source``.
        origin: see ``Source``.
    """
    if in_memory is None:
        in_memory = sum(math.prod(images.shape) for images in stored.values()) < IN_MEMORY

    def read(name: str) -> Split:
        return Split(stored[name][:] if in_memory else stored[name], labels[name], stored[name])

    validation = read("validation") if "validation" in stored else None
    return Source(classes, read("train"), lambda: read("test"), test_is_cut, validation, origin)


def split_of(name: str) -> str | None:
    """The split that a folder's name stands for: ``"train"``, ``"validation"`` or ``"test"``; ``None`` for others."""
    match = _NAME.fullmatch(name.strip().casefold())
    return SPLITS[match[1]] if match else None


def _find_splits(folders: Folders) -> tuple[dict[str, Path], Folders]:
    """The folders that are splits, by split, and the other folders.

    Raises:
        InputError: if two folders are the same split, or there is no training split beside the others.
    """
    splits: dict[str, Path] = {}
    others: Folders = {}
    for name, paths in folders.items():
        split = split_of(name)
        if split is None:
            others[name] = paths
        elif split in splits:
            raise InputError(
                f"{paths[0].parent} has two folders for one split, {splits[split].name!r} and {paths[0].name!r}: both "
                f"are names of the {split} split. Move all its images into one of them"
            )
        else:
            splits[split] = paths[0]
    if splits and "train" not in splits:
        first = next(iter(splits.values()))
        if first.name.casefold() == "dev" and len(splits) == 1:
            return {}, folders
        raise InputError(
            f"{first.parent} has a folder {first.name!r} but no folder 'train'; {first.name!r} is the name of a split, "
            "never of a class. If it is a class here, move the folders of all classes into a folder 'train'"
        )
    return splits, others


def _check_classes(folder: Path, class_folders: Folders) -> None:
    """Check that a folder contains classes, and not splits in the place of classes."""
    if not class_folders:
        raise InputError(
            f"{folder}: has no folders; expected one folder per class, with its images in it (a folder 'train' is the "
            "training split, never a class)"
        )
    for paths in class_folders.values():
        for path in paths:
            inner_splits = [name for name in folder_names(path) if split_of(name)]
            if len({split_of(name) for name in inner_splits}) > 1:
                raise InputError(
                    f"{path} would be a class, but contains folders that are splits ({', '.join(inner_splits)}); "
                    f"splits must contain classes: {folder}/train/{path.name}. If it is the data set, set "
                    f"data.root={path}"
                )


def _check_others(
    folder: Path, splits: Mapping[str, Path], others: Folders, classes: Folders, skipped: Skipped
) -> None:
    """Reject a folder beside the splits that looks like a class or another split; add other folders to ``skipped``."""
    for name, paths in others.items():
        train = splits["train"].name
        for path in paths:
            if holds_images(path):
                raise InputError(
                    f"{path} has images, but is beside the split {train!r}; if it is a class, move it into "
                    f"{folder / train}, otherwise move it out of {folder}"
                )
            if "test" not in splits and classes.keys() & set(map(class_name, folder_names(path))):
                raise InputError(
                    f"{path} has folders of the same classes as {train!r}, but its name is not the name of a split; "
                    f"rename it to 'test' or 'val', or move it out of {folder}"
                )
            skipped.add("folders beside the splits", name)


def _check_distinct(splits: Mapping[str, Path], classes: Folders) -> None:
    """Check that no link makes one folder two splits or two classes."""
    for kind, folders in (("splits", splits.values()), ("classes", [p for paths in classes.values() for p in paths])):
        seen: dict[Path, Path] = {}
        for path in folders:
            other = seen.setdefault(path.resolve(), path)
            if other is not path and class_name(other.name) != class_name(path.name):
                raise InputError(
                    f"{other} and {path} are two {kind}, but a link makes them the same folder; remove one of them"
                )


def _list_images(classes: Sequence[str], class_folders: Folders, skipped: Skipped) -> tuple[list[Path], Tensor]:
    """The images of each class that has a folder, and their labels, int64 (N,)."""
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        if name not in class_folders:
            continue  # a class may have no test images
        images = sorted(image for folder in class_folders[name] for image in list_images(folder, skipped))
        if not images:
            raise InputError(f"{class_folders[name][0]}: has no images ({', '.join(FORMATS)})")
        paths += images
        labels += [label] * len(images)
    return paths, torch.tensor(labels)


def _list_split(folder: Path, classes: Sequence[str], skipped: Skipped) -> tuple[list[Path], Tensor]:
    """The images of a split other than training, and their labels."""
    class_folders = list_folders(folder, skipped)
    if not class_folders:
        raise InputError(f"{folder}: has no folders; expected one folder per class, with its images in it")
    for name, paths in class_folders.items():
        if name not in classes:
            raise InputError(f"{printable(str(paths[0]))}: not a class of the training images{suggest(name, classes)}")
    return _list_images(classes, class_folders, skipped)


def divide(labels: Tensor, fraction: float, seed: int, classes: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The indices of test and training images; the latter must contain each class."""
    count = round(fraction * len(labels))
    if count == 0:
        raise InputError(f"data.test_fraction={fraction} of {len(labels)} images leaves none for testing")
    test, train = stratified(labels, count, seed)
    remaining = set(labels[train].tolist())
    for label, name in enumerate(classes):
        if label not in remaining:
            raise InputError(f"data.test_fraction={fraction} leaves no image of class {name!r} for training")
    return test, train
