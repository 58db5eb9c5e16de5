"""Images in folders, one folder a class."""

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
    PassedOver,
    class_name,
    folder_names,
    holds_images,
    list_folders,
    list_images,
)
from factor_transfer.data.split import Origin, Source, Split, stratified
from factor_transfer.data.stored import StoredImages
from factor_transfer.errors import InputError, printable, suggest

IN_MEMORY = 2**32  # bytes of decoded images, training and test, that are held in memory if a recipe does not say

Folders = dict[str, list[Path]]  # by the names of classes, see ``list_folders``

# The names of splits, in lower case; "train_set", "test-images" and "val2017" are such, too.
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

    Splits are known by their usual names, in upper or lower case: train, training; val, valid, validation, dev; test,
    testing. Without a validation folder, ``open_data`` cuts one. Without a test folder, the test images are taken from
    ``root/train/<class>/`` or ``root/<class>/`` at random, each class in proportion. Folders within a class's folder
    belong to it, links to folders are followed. Hidden and system files and folders, and files that are no images (see
    ``decode.FORMATS``), are passed over and counted. Classes and images are in the order of their names; names of
    classes are compared in Unicode's normal form C. docs/data.md says more.

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
        InputError: if there are no classes, a class is empty or unknown to training, folders cannot be told to be
            splits or classes, a name is not UTF-8, an image cannot be read, is too large to be one or of another size,
            or an argument is out of its range.
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
    passed_over = PassedOver()
    splits, beside = _find_splits(list_folders(folder, passed_over))
    top = splits.get("train", folder)
    found = list_folders(top, passed_over) if splits else beside
    _check_classes(top, found)
    if splits:
        _check_beside(folder, splits, beside, found, passed_over)
    _check_distinct(splits, found)
    classes = tuple(sorted(found))
    train_paths, train_labels = _list_images(classes, found, passed_over)
    listed = {name: _list_split(splits[name], classes, passed_over) for name in splits if name != "train"}
    where = f"{top.name or top}/"
    own = {name: f"{splits[name].name}/" for name in splits}
    origin = Origin(str(folder), where, own.get("validation", ""), own.get("test", ""))
    if "test" not in listed:
        tested, trained = _divide(train_labels, test_fraction, split_seed, classes)
        listed["test"] = [train_paths[index] for index in tested], train_labels[tested]
        train_paths, train_labels = [train_paths[index] for index in trained], train_labels[trained]
        origin = replace(origin, test=f"{100 * test_fraction:.3g} % of {where}, for there is no test folder")
    origin = replace(origin, test_size=len(listed["test"][0]), passed_over=str(passed_over))
    listed["train"] = train_paths, train_labels
    stored = {
        name: StoredImages(folder, paths, size=size, channels=channels, like=train_paths[0], workers=workers)
        for name, (paths, _) in listed.items()
    }
    if in_memory is None:
        in_memory = sum(math.prod(images.shape) for images in stored.values()) < IN_MEMORY

    def read(name: str) -> Split:
        return Split(stored[name][:] if in_memory else stored[name], listed[name][1], stored[name])

    return Source(
        classes,
        read("train"),
        lambda: read("test"),
        test_is_cut="test" not in splits,
        validation=read("validation") if "validation" in listed else None,
        origin=origin,
    )


def _split_of(name: str) -> str | None:
    """The split that a folder of this name holds: ``"train"``, ``"validation"``, ``"test"``; ``None`` for others."""
    match = _NAME.fullmatch(name.strip().casefold())
    return SPLITS[match[1]] if match else None


def _find_splits(folders: Folders) -> tuple[dict[str, Path], Folders]:
    """Which of the folders are splits, and the others.

    Raises:
        InputError: two of them are the same split, or there is no training split.
    """
    splits: dict[str, Path] = {}
    beside: Folders = {}
    for name, paths in folders.items():
        split = _split_of(name)
        if split is None:
            beside[name] = paths
        elif split in splits:
            raise InputError(
                f"{paths[0].parent} has two folders for one split, {splits[split].name!r} and {paths[0].name!r}: both "
                f"are names of the {split} split. Put all its images into one of them"
            )
        else:
            splits[split] = paths[0]
    if splits and "train" not in splits:
        first = next(iter(splits.values()))
        if first.name.casefold() == "dev" and len(splits) == 1:
            return {}, folders
        raise InputError(
            f"{first.parent} has a folder {first.name!r} but no folder 'train'; {first.name!r} is the name of a split, "
            "never of a class. If it is a class here, put the folders of all classes into a folder 'train'"
        )
    return splits, beside


def _check_classes(folder: Path, found: Folders) -> None:
    """Refuse a folder without classes, and splits that lie where classes are expected."""
    if not found:
        raise InputError(
            f"{folder}: has no folders; expected one for each class, with its images in it. (A folder 'train' is the "
            "training split, never a class)"
        )
    for paths in found.values():
        for path in paths:
            within = [name for name in folder_names(path) if _split_of(name)]
            if len({_split_of(name) for name in within}) > 1:
                raise InputError(
                    f"{path} would be a class, but holds folders that are splits ({', '.join(within)}); "
                    f"splits lie above classes: {folder}/train/{path.name}. If it is the data set, give "
                    f"data.root={path}"
                )


def _check_beside(
    folder: Path, splits: Mapping[str, Path], beside: Folders, classes: Folders, passed_over: PassedOver
) -> None:
    """Refuse what lies beside the splits and looks like a class or another split; the rest is passed over."""
    for name, paths in beside.items():
        train = splits["train"].name
        for path in paths:
            if holds_images(path):
                raise InputError(
                    f"{path} has images, and lies beside the split {train!r}: if it is a class, move it into "
                    f"{folder / train}; if not, move it out of {folder}"
                )
            if "test" not in splits and classes.keys() & set(map(class_name, folder_names(path))):
                raise InputError(
                    f"{path} has folders of the same classes as {train!r}, but its name is of no split; call it 'test' "
                    f"or 'val', or move it out of {folder}"
                )
            passed_over.add("folders beside the splits", name)


def _check_distinct(splits: Mapping[str, Path], classes: Folders) -> None:
    """Refuse links that make one folder two splits, or two classes."""
    for kind, several in (("splits", splits.values()), ("classes", [p for paths in classes.values() for p in paths])):
        seen: dict[Path, Path] = {}
        for path in several:
            other = seen.setdefault(path.resolve(), path)
            if other is not path and class_name(other.name) != class_name(path.name):
                raise InputError(
                    f"{other} and {path} are two {kind}, but a link makes them one folder; remove one of them"
                )


def _list_images(classes: Sequence[str], found: Folders, passed_over: PassedOver) -> tuple[list[Path], Tensor]:
    """The images of each class that has a folder, and their labels, int64 (N,)."""
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        if name not in found:
            continue  # a class may have no test images
        images = sorted(image for folder in found[name] for image in list_images(folder, passed_over))
        if not images:
            raise InputError(f"{found[name][0]}: has no images ({', '.join(FORMATS)})")
        paths += images
        labels += [label] * len(images)
    return paths, torch.tensor(labels)


def _list_split(folder: Path, classes: Sequence[str], passed_over: PassedOver) -> tuple[list[Path], Tensor]:
    """The images of a split other than training, and their labels."""
    found = list_folders(folder, passed_over)
    if not found:
        raise InputError(f"{folder}: has no folders; expected one for each class, with its images in it")
    for name, paths in found.items():
        if name not in classes:
            raise InputError(f"{printable(str(paths[0]))}: a class unknown to training{suggest(name, classes)}")
    return _list_images(classes, found, passed_over)


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
