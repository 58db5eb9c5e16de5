"""CIFAR-10 and CIFAR-100 from their original files, in the binary or the Python layout.

The data sets are described in A. Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009, and
published at https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from factor_transfer.data.sets.cifar.checksums import check_published
from factor_transfer.data.sets.cifar.pickles import load_pickled_dict
from factor_transfer.data.sets.download import fetch, unpack
from factor_transfer.data.split import Origin, Source, Split
from factor_transfer.errors import InputError
from factor_transfer.files import open_regular

# Name of the data set -> (URL of the binary archive, published MD5)
ARCHIVES = {
    "cifar10": (
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
    ),
    "cifar100": (
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        "03b5dce01913d631647c71ecec9e9cb8",
    ),
}
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

_PIXELS = 3 * 32 * 32  # the bytes of an image: the red, green and blue planes, each row by row

_Labelled = tuple[np.ndarray, np.ndarray]  # labels int64 (N,), pixels uint8 (N, 3072)


@dataclass(frozen=True)
class _Layout:
    """A layout of a data set on disk: the name of its folder, its files, and the functions that read them."""

    folder: str
    train: tuple[str, ...]
    test: str
    read: Callable[[Path], _Labelled]
    names: str  # the file with the names of the classes, which may be missing
    read_names: Callable[[Path], Sequence[object]]
    record: int | None = None  # the bytes of an image with its labels; None if it varies


def load_cifar10(*, root: str = "data", download: bool = False, verify: bool = True) -> Source:
    """CIFAR-10: 50,000 training and 10,000 test images of 32×32 pixels in colour, in 10 classes.

    The files are read from ``cifar-10-batches-bin`` or, if it is missing, from ``cifar-10-batches-py``.

    Args:
        root: the folder that contains ``cifar-10-batches-bin`` or ``cifar-10-batches-py``, or one of these itself.
        download: whether to download the binary archive (162 MB) into ``root`` if both folders are missing. Only one
            process at a time may do so.
        verify: whether to reject a file that has as many images as the published one, but another checksum.

    Raises:
        InputError: if files are missing, incomplete or damaged, or cannot be downloaded.
    """
    batches = tuple(f"data_batch_{number}" for number in range(1, 6))
    binary = _Layout(
        folder="cifar-10-batches-bin",
        train=tuple(f"{batch}.bin" for batch in batches),
        test="test_batch.bin",
        read=partial(_read_binary, label_bytes=1, position=0),
        names="batches.meta.txt",
        read_names=_read_lines,
        record=1 + _PIXELS,
    )
    python = _Layout(
        folder="cifar-10-batches-py",
        train=batches,
        test="test_batch",
        read=partial(_read_python, key="labels"),
        names="batches.meta",
        read_names=partial(_read_list, key="label_names"),
    )
    return _load("cifar10", (binary, python), Path(root).expanduser(), download, verify, CIFAR10_CLASSES)


def load_cifar100(*, root: str = "data", download: bool = False, verify: bool = True, coarse: bool = False) -> Source:
    """CIFAR-100: 50,000 training and 10,000 test images of 32×32 pixels in colour, in 100 classes or 20 superclasses.

    The files are read from ``cifar-100-binary`` or, if it is missing, from ``cifar-100-python``. If the file with the
    names is missing, the classes are named ``"0"``, ``"1"``, and so on.

    Args:
        root: the folder that contains ``cifar-100-binary`` or ``cifar-100-python``, or one of these itself.
        download: whether to download the binary archive (161 MB) into ``root`` if both folders are missing. Only one
            process at a time may do so.
        verify: whether to reject a file that has as many images as the published one, but another checksum. No
            checksums are known for the binary layout.
        coarse: whether to use the 20 superclasses instead of the 100 classes.

    Raises:
        InputError: if files are missing, incomplete or damaged, or cannot be downloaded.
    """
    kind = "coarse" if coarse else "fine"
    binary = _Layout(
        folder="cifar-100-binary",
        train=("train.bin",),
        test="test.bin",
        read=partial(_read_binary, label_bytes=2, position=0 if coarse else 1),
        names=f"{kind}_label_names.txt",
        read_names=_read_lines,
        record=2 + _PIXELS,
    )
    python = _Layout(
        folder="cifar-100-python",
        train=("train",),
        test="test",
        read=partial(_read_python, key=f"{kind}_labels"),
        names="meta",
        read_names=partial(_read_list, key=f"{kind}_label_names"),
    )
    numbers = tuple(str(label) for label in range(20 if coarse else 100))
    return _load("cifar100", (binary, python), Path(root).expanduser(), download, verify, numbers)


def _load(
    name: str, layouts: Sequence[_Layout], root: Path, download: bool, verify: bool, default_classes: tuple[str, ...]
) -> Source:
    found = _find(layouts, root)
    if found is None and download:
        url, md5 = ARCHIVES[name]
        unpack(fetch(url, md5, root), root)
        found = _find(layouts, root)
    if found is None:
        folders = ", ".join(str(root / layout.folder) for layout in layouts)
        raise InputError(
            f"no {name} files in {folders} or {root} itself; "
            "set data.root=… to another folder, or data.download=true to download them"
        )
    folder, layout = found
    missing = [file for file in (*layout.train, layout.test) if not (folder / file).is_file()]
    if missing:
        raise InputError(
            f"{folder} is incomplete, {', '.join(missing)} missing; "
            "complete it, or remove it and download it again with data.download=true"
        )
    classes = _read_classes(layout, folder / layout.names, default_classes)

    def read(files: Sequence[str]) -> Split:
        parts = [layout.read(folder / file) for file in files]
        for file, (labels, _) in zip(files, parts, strict=True):
            if labels.max() >= len(classes):
                raise InputError(
                    f"{folder / file}: image {labels.argmax()} has label {labels.max()}, expected 0..{len(classes) - 1}"
                )
            if verify:
                check_published(folder / file, len(labels))
        # A copy even of a single part, because the arrays are read-only and a tensor is not.
        images = np.concatenate([pixels for _, pixels in parts]).reshape(-1, 3, 32, 32)
        labels = np.concatenate([labels for labels, _ in parts])
        return Split(torch.from_numpy(images), torch.from_numpy(labels))

    # The number of images in a binary file follows from its length; a pickle would have to be read.
    size = None
    if layout.record is not None:
        size = (folder / layout.test).stat().st_size // layout.record
    origin = Origin(str(folder), test=layout.test, test_size=size)
    return Source(classes, read(layout.train), lambda: read([layout.test]), origin=origin)


def _find(layouts: Sequence[_Layout], root: Path) -> tuple[Path, _Layout] | None:
    """The first layout that has any file, and its folder."""
    for layout in layouts:
        for folder in (root / layout.folder, root):
            if any((folder / file).is_file() for file in (*layout.train, layout.test)):
                return folder, layout
    return None


def _read_classes(layout: _Layout, path: Path, default: tuple[str, ...]) -> tuple[str, ...]:
    if not path.exists():
        return default
    names = tuple(
        name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in layout.read_names(path)
    )
    if len(names) != len(default):
        raise InputError(f"{path}: has the names of {len(names)} classes, expected {len(default)}")
    return names


def _read_binary(path: Path, *, label_bytes: int, position: int) -> _Labelled:
    """Read records of ``label_bytes`` labels, of which the one at ``position`` is used, followed by the pixels."""
    data = np.frombuffer(_read_bytes(path), np.uint8)
    record = label_bytes + _PIXELS
    if len(data) == 0 or len(data) % record:
        raise InputError(f"{path}: has {len(data):,} bytes, expected records of {record:,}; it is truncated or damaged")
    records = data.reshape(-1, record)
    return records[:, position].astype(np.int64), records[:, label_bytes:]


def _read_python(path: Path, *, key: str) -> _Labelled:
    """Read a pickled dict with ``data``, uint8 (N, 3072), and a list of N labels under ``key``."""
    content = load_pickled_dict(path)
    pixels, labels = content.get("data"), content.get(key)
    if not isinstance(pixels, np.ndarray) or pixels.shape[1:] != (_PIXELS,) or not len(pixels):
        found = pixels.shape if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise InputError(f"{path}: 'data' is {found}, expected uint8 of shape (images, {_PIXELS})")
    if not isinstance(labels, list) or not all(isinstance(label, int) and 0 <= label < 256 for label in labels):
        raise InputError(f"{path}: {key!r} is not a list of numbers 0..255")
    if len(labels) != len(pixels):
        raise InputError(f"{path}: {len(labels)} labels in {key!r} for {len(pixels)} images")
    return np.array(labels, np.int64), pixels


def _read_lines(path: Path) -> list[object]:
    return [line.strip() for line in _read_bytes(path).splitlines() if line.strip()]


def _read_list(path: Path, *, key: str) -> Sequence[object]:
    names = load_pickled_dict(path).get(key)
    if not isinstance(names, list) or not all(isinstance(name, str | bytes) for name in names):
        raise InputError(f"{path}: {key!r} is not a list of names")
    return names


def _read_bytes(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
