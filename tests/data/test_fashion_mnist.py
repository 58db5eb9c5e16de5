"""Fashion-MNIST from its original files, and the part of it that comes with the package."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import ROOT, Run, refused
from factor_transfer.data import Split, open_data
from factor_transfer.data.sets.fashion_mnist import CLASSES, FILES, load_fashion_mnist, load_fashion_mnist_small
from factor_transfer.errors import InputError

WHOLE = Path(os.environ.get("FACTOR_TRANSFER_FASHION_MNIST", ROOT.parent / "shared" / "data" / "fashion-mnist"))


def idx(values: np.ndarray) -> bytes:
    return bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def write(folder: Path, packed: bool = True, count: int = 20) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for prefix in ("train", "t10k"):
        images = generator.integers(0, 256, (count, 28, 28), np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for name, values in (("images-idx3", images), ("labels-idx1", labels)):
            content, path = idx(values), folder / f"{prefix}-{name}-ubyte"
            if packed:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
            else:
                path.write_bytes(content)
    return folder


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("inside", [".", "fashion-mnist", "FashionMNIST/raw"])
def test_it_is_read_from_each_layout(packed: bool, inside: str, tmp_path: Path) -> None:
    write(tmp_path / inside, packed)
    source = load_fashion_mnist(root=str(tmp_path))
    assert source.classes == CLASSES
    for split in (source.train, source.test()):
        assert split.images[:].shape == (20, 1, 28, 28)
        assert split.labels.tolist() == [*range(10), *range(10)]
    expected = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)
    assert torch.equal(source.train.images[:][:, 0], torch.from_numpy(expected))


@settings(max_examples=60)
@given(cut=st.integers(0, 40), place=st.integers(0, 15), value=st.integers(0, 255))
def test_a_damaged_file_is_refused_or_read_whole(cut: int, place: int, value: int, tmp_path: Path) -> None:
    folder = write(tmp_path, packed=False)
    path = folder / "train-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    changed = content[place] != value
    content[place] = value
    path.write_bytes(content[: len(content) - cut])
    if changed or cut:
        with pytest.raises(InputError):
            load_fashion_mnist(root=str(folder))
    else:
        assert len(load_fashion_mnist(root=str(folder)).train) == 20


def test_bad_files_end_in_one_message(tmp_path: Path, run: Run, tiny: Path) -> None:
    def asked(*, ends: str) -> None:
        given = f"data={{name='fashion-mnist', root='{tmp_path / 'data'}'}}"
        refused(run("run", tiny, given), ends)

    asked(ends="no Fashion-MNIST in")
    write(tmp_path / "data")
    (tmp_path / "data" / "train-labels-idx1-ubyte.gz").unlink()
    asked(ends="Fashion-MNIST has four files")
    labels = (np.arange(20) % 11).astype(np.uint8)
    (tmp_path / "data" / "train-labels-idx1-ubyte").write_bytes(idx(labels))
    asked(ends="train has a label 10, expected 0..9")
    (tmp_path / "data" / "train-labels-idx1-ubyte").write_bytes(idx(labels[:9]))
    asked(ends="train has 20 images, but 9 labels")
    (tmp_path / "data" / "train-labels-idx1-ubyte").unlink()
    (tmp_path / "data" / "train-labels-idx1-ubyte.gz").write_bytes(b"\x1f\x8b" + bytes(20))
    asked(ends="train-labels-idx1-ubyte.gz cannot be read")


def test_the_part_that_comes_with_the_package() -> None:
    data = open_data("fashion-mnist-small", validation=0.0)
    assert data.train.labels.bincount().tolist() == [600] * 10
    assert data.test().labels.bincount().tolist() == [1000] * 10
    assert data.mean == pytest.approx([0.286], abs=0.002)
    assert data.std == pytest.approx([0.353], abs=0.002)
    assert sum(path.stat().st_size for path in FILES.iterdir()) < 7_000_000
    assert "MIT" in (FILES / "LICENSE").read_text()


@pytest.mark.skipif(not WHOLE.is_dir(), reason=f"no Fashion-MNIST in {WHOLE}; FACTOR_TRANSFER_FASHION_MNIST names it")
def test_the_part_is_of_the_published_images() -> None:
    whole, part = load_fashion_mnist(root=str(WHOLE)), load_fashion_mnist_small()

    def known(split: Split) -> set[bytes]:
        return {
            bytes([label]) + image.numpy().tobytes() for image, label in zip(split.images[:], split.labels, strict=True)
        }

    assert known(part.train) <= known(whole.train)
    assert torch.equal(part.test().images[:], whole.test().images[:])
    assert torch.equal(part.test().labels, whole.test().labels)


@pytest.mark.skipif(not WHOLE.is_dir(), reason=f"no Fashion-MNIST in {WHOLE}; FACTOR_TRANSFER_FASHION_MNIST names it")
def test_one_changed_byte_of_the_published_files_is_noticed(tmp_path: Path) -> None:
    for path in WHOLE.glob("*.gz"):
        (tmp_path / path.name).symlink_to(path)
    content = bytearray(gzip.decompress((WHOLE / "t10k-images-idx3-ubyte.gz").read_bytes()))
    content[5000] ^= 1
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(InputError, match="damaged, or not the published file"):
        load_fashion_mnist(root=str(tmp_path)).test()
