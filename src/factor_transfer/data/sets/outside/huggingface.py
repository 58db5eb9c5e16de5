"""Data sets of Hugging Face's library ``datasets``: from the hub, from a folder, or from Parquet files."""

from collections.abc import Collection, Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Lt

from factor_transfer.data.sets.folder import divide
from factor_transfer.data.sets.outside.map_style import splits
from factor_transfer.data.split import Origin, Source
from factor_transfer.errors import InputError, choose, first_line
from factor_transfer.external import installed, pip_install


class Rows:
    """The images and labels of a data set, as a map-style data set.

    Args:
        dataset: the ``datasets.Dataset``, whose rows are read from memory-mapped files.
        image: the column of the images.
        label: the column of the labels.
    """

    def __init__(self, dataset: Any, image: str, label: str) -> None:
        self.dataset, self.image, self.label = dataset, image, label

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        row = self.dataset[index]
        return row[self.image], row[self.label]

    @property
    def targets(self) -> list[Any]:
        """All labels, without reading the images."""
        return list(self.dataset[self.label])


def load_huggingface(
    *,
    path: str,
    config: str | None = None,
    train_split: str = "train",
    validation_split: str | None = None,
    test_split: str | None = None,
    image: str | None = None,
    label: str | None = None,
    size: Annotated[int, Ge(1)] | None = None,
    channels: Literal[1, 3] = 3,
    test_fraction: Annotated[float, Gt(0), Lt(1)] = 0.2,
    split_seed: Annotated[int, Ge(0)] = 0,
    workers: Annotated[int, Ge(0)] = 0,
) -> Source:
    """A data set of the Hugging Face hub, of a folder that ``save_to_disk`` wrote, or of Parquet files.

    The library ``datasets`` reads it (``pip install 'factor-transfer[datasets]'``), memory-mapped, never as a stream.

    Args:
        path: the name on the hub, such as ``"ylecun/mnist"``; a folder that ``save_to_disk`` wrote, or with Parquet
            files; or a Parquet file.
        config: the configuration of a data set on the hub that has several.
        train_split: the name of the split with the training images.
        validation_split: the name of the split with the validation images; by default ``"validation"``, if there is
            one, or else a part of the training images.
        test_split: the name of the split with the test images; by default ``"test"``, if there is one, or else a random
            part of the training images, stratified by class.
        image: the column with the images; by default the only column with images.
        label: the column with the labels; by default the only column with classes.
        size: the number of pixels that the shorter side of each image is scaled to (bilinear, antialiased), before the
            size×size pixels at the centre are cropped. By default all images must have the same size, which is kept.
        channels: the number of channels: 3 for colour, 1 for grey.
        test_fraction: the fraction of test images if there is no test split, in 0..1.
        split_seed: the seed that selects these test images.
        workers: the number of processes that read images during training if they are too many for memory; 0 reads them
            in the process that trains.

    Raises:
        InputError: if the library is not installed, the data set cannot be read, or has no such split or column.
    """
    found = _open(path, config)
    train = found[_split("data.train_split", train_split, found)]
    image, label, classes = _columns(path, train, image, label)
    rows = {"train": Rows(train, image, label)}
    for role, name in other_splits(train_split, validation_split, test_split, found).items():
        rows[role] = Rows(found[_split(f"data.{role}_split", name, found)], image, label)
    test_origin = ""
    test_is_cut = "test" not in rows
    if test_is_cut:
        test, remaining = divide(torch.tensor(rows["train"].targets), test_fraction, split_seed, classes)
        rows["test"] = Rows(train.select(test.tolist()), image, label)
        rows["train"] = Rows(train.select(remaining.tolist()), image, label)
        test_origin = f"{100 * test_fraction:.3g} % of {train_split}, as there is no test split"
    named = [(one, f"the {role} images of {path}") for role, one in rows.items()]
    readers = dict(zip(rows, splits(named, size, channels, workers), strict=True))
    origin = Origin(path, train_split, test=test_origin, test_size=len(rows["test"]))
    validation = readers["validation"]() if "validation" in readers else None
    return Source(classes, readers["train"](), readers["test"], test_is_cut, validation, origin)


def other_splits(train: str, validation: str | None, test: str | None, found: Collection[str]) -> dict[str, str]:
    """The names of the splits for validation and for testing, as far as there are any.

    Args:
        train: the name of the split with the training images.
        validation: the given name of the split with the validation images. The default is ``"validation"``, if there is
            such a split and it has no other use.
        test: the same for the test images and ``"test"``.
        found: the names of all splits.

    Raises:
        InputError: if a split is named for two uses.
    """
    given = {"train": train, "validation": validation, "test": test}
    names = [name for name in given.values() if name is not None]
    for role in ("test", "validation"):
        if given[role] is not None and names.count(str(given[role])) > 1:
            raise InputError(f"data.{role}_split is {given[role]!r}, which has another use, too; give another split")
    chosen = {role: given[role] or (role if role in found and role not in names else None) for role in given}
    return {role: name for role, name in chosen.items() if role != "train" and name is not None}


def _open(path: str, config: str | None) -> Mapping[str, Any]:
    """The splits of a data set by name."""
    if not installed("datasets"):
        raise InputError(f'data.name = "huggingface" needs datasets, which is not installed; {pip_install("datasets")}')
    library = import_module("datasets")
    folder = Path(path).expanduser()
    is_path = folder.is_absolute() or path.startswith(".") or path.count("/") > 1 or path.endswith(".parquet")
    if is_path and not folder.exists():  # the library would ask the hub for it
        raise InputError(f"data.path {path!r} does not exist; give a folder, a Parquet file, or a name on the hub")
    try:
        if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
            found = library.load_from_disk(str(folder))
        elif folder.is_file():
            found = library.load_dataset("parquet", data_files=str(folder))
        else:
            found = library.load_dataset(str(folder) if folder.is_dir() else path, config)
    except Exception as error:  # the library may raise anything for a data set that it cannot find or read
        raise InputError(
            f"data.path {path!r} cannot be read by datasets: {type(error).__name__}: {first_line(error)}"
        ) from error
    splits_found: Mapping[str, Any] = found if isinstance(found, Mapping) else {"train": found}
    return splits_found


def _split(key: str, name: str, found: Mapping[str, Any]) -> str:
    return choose(f"split in {key}", name, found)


def _columns(path: str, dataset: Any, image: str | None, label: str | None) -> tuple[str, str, tuple[str, ...]]:
    """The columns of images and labels, and the names of the classes."""
    library, features = import_module("datasets"), dataset.features
    kinds = {"image": (image, library.Image), "label": (label, library.ClassLabel)}
    chosen = {}
    for key, (given, kind) in kinds.items():
        fitting = [name for name, feature in features.items() if isinstance(feature, kind)]
        if given is None and len(fitting) != 1:
            raise InputError(
                f"{path} has {len(fitting)} columns of type {kind.__name__}; set data.{key} to one of "
                f"{', '.join(features)}"
            )
        chosen[key] = choose(f"column in data.{key}", given if given is not None else fitting[0], features)
    names = getattr(features[chosen["label"]], "names", None)
    if names is None:  # integers without names
        labels = dataset.unique(chosen["label"])
        if not all(isinstance(one, int) and one >= 0 for one in labels):
            raise InputError(
                f"{path}: the column {chosen['label']!r} has no classes and is not of integers; "
                "datasets.Dataset.class_encode_column makes classes of it"
            )
        names = [str(number) for number in range(max(labels) + 1)]
    return chosen["image"], chosen["label"], tuple(names)
