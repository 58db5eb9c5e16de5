"""Fashion-MNIST: the whole data set from its original files, or the part of it that comes with the package.

The data set is described in H. Xiao, K. Rasul, R. Vollgraf, *Fashion-MNIST: a Novel Image Dataset for Benchmarking
Machine Learning Algorithms*, 2017 (arXiv 1708.07747), and published under the MIT licence at
https://github.com/zalandoresearch/fashion-mnist.
"""

import gzip
import hashlib
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from factor_transfer.data.sets.download import fetch
from factor_transfer.data.split import Origin, Source, Split
from factor_transfer.errors import InputError

CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

FILES = Path(__file__).parent / "fashion_mnist_files"

_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_SIDE = 28  # pixels

# For each file, the MD5 of the published archive, and the SHA-256 of its unpacked content.
_PUBLISHED = {
    "train-images-idx3-ubyte": (
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    "train-labels-idx1-ubyte": (
        "25c81989df183df01b3e8a0aad5dffbe",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    "t10k-images-idx3-ubyte": (
        "bef4ecab320f06d8554ea6380940ec79",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    "t10k-labels-idx1-ubyte": (
        "bb300cfdad3c16e7a12a480ee83cd310",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}
_MOST_BYTES = 2**26  # the largest size of an unpacked file; the largest published one has 47 million bytes


def load_fashion_mnist(*, root: str = "data", download: bool = False, verify: bool = True) -> Source:
    """Fashion-MNIST: 60,000 training and 10,000 test images of 28×28 grey pixels, in 10 classes of clothing.

    The four IDX files, with or without ``.gz``, are read from ``root``, ``root/fashion-mnist`` or
    ``root/FashionMNIST/raw`` (torchvision's folder).

    Args:
        root: the folder of the four files, or the folder that contains ``fashion-mnist`` or ``FashionMNIST/raw``.
        download: whether to download the four files (31 MB) into ``root/fashion-mnist`` if they are missing. Only one
            process at a time may do so.
        verify: whether to reject files that have the published size, but another checksum.

    Raises:
        InputError: if the files are missing, incomplete or damaged, or cannot be downloaded.
    """
    place = Path(root).expanduser()
    folders = [place, place / "fashion-mnist", place / "FashionMNIST" / "raw"]
    folder = next((folder for folder in folders if _find(folder, "train-images-idx3-ubyte")), None)
    if folder is None and download:
        folder = place / "fashion-mnist"
        for name, (md5, _) in _PUBLISHED.items():
            fetch(f"{_URL}{name}.gz", md5, folder)
    if folder is None:
        raise InputError(
            f"no Fashion-MNIST in {place}: train-images-idx3-ubyte.gz and three more files are expected there or in "
            f"{folders[1]}; set data.root=… to their folder, or data.download=true to download them"
        )
    train, origin = _read_split(folder, "train", verify), Origin(str(folder), test="t10k-*")
    return Source(CLASSES, train, lambda: _read_split(folder, "t10k", verify), origin=origin)


def load_fashion_mnist_small() -> Source:
    """The part of Fashion-MNIST that comes with the package: 6,000 training images and all 10,000 test images.

    The training images are 600 of each class, drawn at random from the 60,000. Nothing is downloaded.
    """
    origin = Origin(test_size=(FILES / "test-labels.bin").stat().st_size)  # one byte per label
    return Source(CLASSES, _read_sheet("train"), lambda: _read_sheet("test"), origin=origin)


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _read_split(folder: Path, prefix: str, verify: bool) -> Split:
    images = _read_idx(folder, f"{prefix}-images-idx3-ubyte", 3, verify)
    labels = _read_idx(folder, f"{prefix}-labels-idx1-ubyte", 1, verify)
    if len(images) != len(labels):
        raise InputError(f"{folder}: {prefix} has {len(images)} images, but {len(labels)} labels")
    if images.shape[1:] != (_SIDE, _SIDE):
        raise InputError(
            f"{folder}: the images have {images.shape[2]}×{images.shape[1]} pixels, expected {_SIDE}×{_SIDE}"
        )
    if len(labels) and labels.max() >= len(CLASSES):
        raise InputError(f"{folder}: {prefix} has a label {int(labels.max())}, expected 0..{len(CLASSES) - 1}")
    return Split(images[:, None], labels.long())


def _read_idx(folder: Path, name: str, dimensions: int, verify: bool) -> Tensor:
    """Read an IDX file of unsigned bytes: a magic number, the size of each dimension, and the values."""
    path = _find(folder, name)
    if path is None:
        raise InputError(f"{folder / name}.gz is missing; Fashion-MNIST has four files")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    sizes = [int(size) for size in np.frombuffer(content[4 : 4 + 4 * dimensions], ">u4")]
    values = content[4 + 4 * dimensions :]
    count = int(np.prod(sizes, dtype=np.float64))
    if content[:4] != bytes((0, 0, 8, dimensions)) or len(sizes) != dimensions or len(values) != count:
        raise InputError(f"{path} is damaged, or not an IDX file of unsigned bytes in {dimensions} dimensions")
    published = (60_000 if name.startswith("train") else 10_000) == sizes[0]
    if verify and published and hashlib.sha256(content).hexdigest() != _PUBLISHED[name][1]:
        raise InputError(
            f"{path} is damaged, or not the published file; download it again with data.download=true into another "
            "data.root, or set data.verify=false if it is meant to differ"
        )
    return torch.from_numpy(np.frombuffer(values, np.uint8).reshape(sizes).copy())


def _read_sheet(name: str) -> Split:
    labels = torch.from_numpy(np.frombuffer((FILES / f"{name}-labels.bin").read_bytes(), np.uint8).astype(np.int64))
    with Image.open(FILES / f"{name}.webp", formats=["WEBP"]) as sheet:
        pixels = torch.from_numpy(np.asarray(sheet.convert("RGB"))[:, :, 0].copy())
    rows = pixels.unfold(0, _SIDE, _SIDE).unfold(1, _SIDE, _SIDE)  # (rows, columns, 28, 28)
    return Split(rows.reshape(-1, 1, _SIDE, _SIDE)[: len(labels)].contiguous(), labels)
