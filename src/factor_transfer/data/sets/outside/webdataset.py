"""Data sets in the format of WebDataset: tar files of images and labels."""

import glob
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from factor_transfer.data.sets.folder import divide, split_of, stored_source
from factor_transfer.data.sets.image_files import Skipped
from factor_transfer.data.sets.outside.tar_shards import TarImages, TarIndex, index_shards, member_path
from factor_transfer.data.split import Origin, Source
from factor_transfer.errors import InputError, first_line, printable

_ENDINGS = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")  # the compressed ones are refused by name
_CLASSES = "classnames.txt"
_MOST_SHARDS = 100_000


def load_webdataset(
    *,
    root: str,
    train_shards: str | None = None,
    validation_shards: str | None = None,
    test_shards: str | None = None,
    image: str | None = None,
    label: str = "cls",
    classes: list[str] | None = None,
    size: Annotated[int, Ge(1)] | None = None,
    channels: Literal[1, 3] = 3,
    test_fraction: Annotated[float, Gt(0), Lt(1)] = 0.2,
    split_seed: Annotated[int, Ge(0)] = 0,
    in_memory: bool | None = None,
    workers: Annotated[int, Ge(0)] | None = None,
) -> Source:
    """A data set of tar files in the format of WebDataset, such as ``train-000000.tar``.

    The files with the same name up to the first dot are a sample. The headers of the files are read first, and then
    each image where it is, in any order. The tar files must be on disk, and not compressed.

    Args:
        root: the folder of the data set.
        train_shards: the tar files of the training images, below ``root``: a pattern such as
            ``"imagenet-train-{000000..001281}.tar"`` or ``"train/*.tar"``. By default the files of each split are
            found by the name of their folder (``train``, ``val``, ``test``) or by the same word in their own name.
        validation_shards: the tar files of the validation images, found like ``train_shards`` by default. If there are
            none, they are a part of the training images.
        test_shards: the tar files of the test images, found like ``train_shards`` by default. If there are none, they
            are a random part of the training images, stratified by class.
        image: the ending of the images in the tar files; by default jpg, jpeg, png or webp.
        label: the ending of the labels, which are integers as text; or ``"json:FIELD"`` for a field of a JSON object.
        classes: the names of the classes, in the order of the labels. By default they are the lines of
            ``classnames.txt`` in ``root``, if there is one, or else the numbers.
        size: the number of pixels that the shorter side of each image is scaled to, see ``load_folder``.
        channels: the number of channels: 3 for colour, 1 for grey.
        test_fraction: the fraction of test images if there are no tar files for them, in 0..1.
        split_seed: the seed that selects these test images.
        in_memory: whether to hold all images in memory, see ``load_folder``.
        workers: the number of processes that decode images during training, see ``load_folder``.

    Raises:
        InputError: if there are no tar files, one is damaged or compressed, a sample has no image or no label, or a
            label is not an integer in 0..K-1.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(f"data.root: {folder} {what}; give the folder of the tar files")
    skipped = Skipped()
    given = {"train": train_shards, "validation": validation_shards, "test": test_shards}
    shards = _find_shards(folder, skipped, train_shards is None) if None in given.values() else {}
    patterns = {split: pattern for split, pattern in given.items() if pattern is not None}
    named = {split: _expand(folder, f"data.{split}_shards", pattern) for split, pattern in patterns.items()}
    # A file that is named for testing is not found for validation, and vice versa.
    taken = {os.path.realpath(path) for split, paths in named.items() if split != "train" for path in paths}
    for split in ("validation", "test"):
        shards[split] = [path for path in shards.get(split, []) if os.path.realpath(path) not in taken]
    shards = {split: paths for split, paths in shards.items() if paths} | named
    if "train" not in shards:
        raise InputError(f"{folder}: has no tar files for training; data.train_shards=… names them")
    shards = {split: shards[split] for split in given if split in shards}
    _check_apart(shards)
    indices = {split: index_shards(found, image, label, skipped) for split, found in shards.items()}
    names = _class_names(folder, classes, int(indices["train"].labels.max()) + 1)
    for index in indices.values():
        _check_labels(index, names)
    parts = {split: f"{len(found)} tar files" if found[1:] else found[0].name for split, found in shards.items()}
    origin = Origin(str(folder), parts["train"], parts.get("validation", ""), parts.get("test", ""))
    test_is_cut = "test" not in indices
    if test_is_cut:
        train = indices["train"]
        test, remaining = divide(train.labels, test_fraction, split_seed, names)
        for split, chosen in (("test", test), ("train", remaining)):
            indices[split] = TarIndex(train.shards, train.entries[chosen.numpy()], train.labels[chosen])
        origin = replace(origin, test=f"{100 * test_fraction:.3g} % of {parts['train']}, as there are none for testing")
    origin = replace(origin, test_size=len(indices["test"].labels), skipped=str(skipped))
    first = TarImages(folder, indices["train"], size=size, channels=channels, workers=workers)
    stored = {
        split: TarImages(folder, index, size=size, channels=channels, workers=workers, like=first)
        for split, index in indices.items()
    }
    labels = {split: index.labels for split, index in indices.items()}
    return stored_source(names, stored, labels, in_memory, test_is_cut, origin)


def _find_shards(folder: Path, skipped: Skipped, train: bool) -> dict[str, list[Path]]:
    """The tar files of each split, by the names of their folders or their own.

    Args:
        folder: the folder of the data set.
        skipped: the record that tar files of no split are added to.
        train: whether to find training images: all tar files, if none has the name of a split.
    """
    found: dict[str, list[Path]] = {}
    others: list[Path] = []
    for path in _entries(folder):
        if path.is_dir():
            split = split_of(path.name)
            inner = [inside for inside in _entries(path) if inside.name.endswith(_ENDINGS)] if split else []
            if split is not None and inner:
                found.setdefault(split, []).extend(inner)
        elif path.name.endswith(_ENDINGS):
            words = re.split(r"[-_. ]", path.name)
            splits = {split for word in words if (split := split_of(word)) is not None}
            if len(splits) > 1:
                raise InputError(
                    f"{path}: its name has the names of several splits; data.train_shards=… and data.test_shards=… "
                    "say which tar files are which"
                )
            if splits:
                found.setdefault(splits.pop(), []).append(path)
            else:
                others.append(path)
    if train and not found and others:
        return {"train": others}
    for path in others if train else ():
        skipped.add("tar files whose name has no split", path.name)
    return found


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"{printable(str(folder))}: cannot be read: {error.strerror}") from error


def _expand(folder: Path, key: str, pattern: str) -> list[Path]:
    """The files that a pattern stands for, in order; those of braces must exist."""
    if "://" in pattern or pattern.startswith("pipe:"):
        raise InputError(f"{key}: {pattern!r} is not on disk, where images can be read in any order; download it first")
    paths: list[Path] = []
    names = list(islice(_braces(pattern), _MOST_SHARDS + 1))
    if len(names) > _MOST_SHARDS:
        raise InputError(f"{key}: {pattern!r} stands for more than {_MOST_SHARDS:,} files")
    for name in names:
        # Path.glob would refuse absolute patterns.
        matches = sorted(glob.glob(name, root_dir=folder)) if glob.has_magic(name) else [name]  # noqa: PTH207
        paths += [folder / match for match in matches]
    if not paths:
        raise InputError(f"{key}: no file in {folder} matches {pattern!r}")
    for path in paths:
        if not os.path.isfile(path):  # noqa: PTH113  # a path object would raise an error for names that are too long
            raise InputError(f"{key}: {printable(str(path))} does not exist")
    return paths


def _braces(pattern: str) -> Iterator[str]:
    """The texts that a pattern with ``{000..012}`` or ``{a,b}`` stands for, as in a shell."""
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if match is None:
        yield pattern
        return
    first, last, listed = match.groups()
    width = len(first) if listed is None else 0
    values: Sequence[object] = listed.split(",") if listed is not None else range(int(first), int(last) + 1)
    for value in values:
        yield from _braces(f"{pattern[: match.start()]}{str(value).zfill(width)}{pattern[match.end() :]}")


def _check_apart(shards: Mapping[str, Sequence[Path]]) -> None:
    """Check that no tar file is used twice."""
    seen: dict[str, str] = {}
    for split, paths in shards.items():
        for path in paths:
            real = os.path.realpath(path)
            if real in seen:
                raise InputError(f"data.{split}_shards: {path} is already among the {seen[real]} shards")
            seen[real] = split


def _class_names(folder: Path, classes: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """The names of the classes: the given ones, or those of a file in the folder, or else ``count`` numbers."""
    where, path = "data.classes", folder / _CLASSES
    if classes is None and path.is_file():
        where = str(path)
        try:
            classes = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read: {first_line(error)}") from error
    if classes is None:
        return tuple(map(str, range(count)))
    if len(set(classes)) < len(classes):
        raise InputError(f"{where} names a class twice")
    return tuple(classes)


def _check_labels(index: TarIndex, names: Sequence[str]) -> None:
    """Check that each label is the index of a class."""
    wrong = (index.labels >= len(names)).nonzero().flatten()
    if len(wrong):
        entry, label = index.entries[wrong[0]], int(index.labels[wrong[0]])
        member = os.fsdecode(bytes(entry["name"]))
        place = member_path(index.shards[entry["shard"]], member)
        raise InputError(f"{place}: has the label {label}, but there are {len(names)} classes")
