"""Tar files in the format of WebDataset, whose images are read in any order."""

import gzip
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import TINY, Run, looked
from factor_transfer.data import Batches, Data, StoredImages, describe, open_data
from factor_transfer.data.sets.outside.tar_shards import TarImages
from factor_transfer.errors import InputError

Files = Mapping[str, bytes]


def png(seed: int, size: int = 8) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 60, (size, size, 3), np.uint8)
    pixels[:, seed % 2 * size // 2 :][:, : size // 2] += 150
    Image.fromarray(pixels).save(content := io.BytesIO(), "PNG")
    return content.getvalue()


def sample(number: int) -> Files:
    """A sample of one of two classes, with a label of each kind."""
    label = number % 2
    name = f"part/{number:06}"
    fields = {"label": label, "text": "left", "half": 0.5}
    return {f"{name}.png": png(number), f"{name}.cls": b"%d\n" % label, f"{name}.json": json.dumps(fields).encode()}


def shard(path: Path, samples: Sequence[Files]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for files in samples:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def samples(first: int, count: int) -> list[Files]:
    return [sample(number) for number in range(first, first + count)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "dots"
    for number in range(3):
        shard(root / f"dots-train-{number:06}.tar", samples(20 * number, 20))
    shard(root / "dots-val-000000.tar", samples(100, 10))
    shard(root / "dots-test-000000.tar", samples(200, 12))
    return root


def opened(root: Path, **settings: Any) -> Data:
    return open_data("webdataset", root=str(root), **settings)


def test_images_are_read_in_any_order(root: Path) -> None:
    whole, data = opened(root), opened(root, in_memory=False, workers=0)
    assert (len(whole.train), len(whole.validation), len(whole.test())) == (60, 10, 12)
    expected = torch.stack([torch.from_numpy(np.array(Image.open(io.BytesIO(png(n))))) for n in range(60)])
    assert torch.equal(whole.train.images[:], expected.permute(0, 3, 1, 2))
    assert whole.train.labels.tolist() == [number % 2 for number in range(60)]
    assert isinstance(data.train.images, TarImages)
    for epoch in (0, 3):
        for one, other in zip(*(Batches(some.train, 16, 1).epoch(epoch, 1) for some in (data, whole)), strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.labels, other.labels)
    assert data.fingerprint == opened(root, in_memory=False).fingerprint
    assert (data.mean, data.std) == (whole.mean, whole.std)
    data.check_unchanged()
    shard(root / "dots-train-000001.tar", samples(20, 20))
    with pytest.raises(InputError, match="were changed while they were used"):
        data.check_unchanged()


def test_the_splits_are_found_or_named(root: Path) -> None:
    assert "60 training images (3 tar files), 10 validation images (dots-val-000000.tar" in describe(opened(root))
    named = opened(root, train_shards="dots-{train,val}-{000000..000000}.tar", validation_shards="dots-train-*2.tar")
    assert (len(named.train), len(named.validation), len(named.test())) == (30, 20, 12)
    # A file that is named for testing is not found for validation.
    other = opened(root, test_shards="dots-val-*.tar")
    assert "validation images (10 % of the training images), 10 test images (dots-val-000000.tar)" in describe(other)
    folders = root.with_name("folders")
    for path in root.iterdir():
        (folders / path.name.split("-")[1]).mkdir(parents=True, exist_ok=True)
        path.rename(folders / path.name.split("-")[1] / path.name[-10:])
    (folders / "classnames.txt").write_text("left\nright\n")
    found = opened(folders, label="json:label")
    assert (len(found.train), len(found.validation), len(found.test())) == (60, 10, 12)
    assert found.classes == ("left", "right")
    cut = opened(folders / "train", test_fraction=0.25, validation=0.2, classes=["a", "b"], size=4, channels=1)
    assert (cut.train.images.shape, len(cut.test()), cut.test_is_cut) == ((36, 1, 4, 4), 15, True)
    assert cut.classes == ("a", "b")


def test_a_recipe_trains_and_finds_equal_images(root: Path, run: Run) -> None:
    shard(root / "dots-test-000000.tar", [*samples(200, 12), sample(3)])
    data = f'[data]\nname = "webdataset"\nroot = "{root}"\nin_memory = false\nworkers = 0\n'
    Path("dots.toml").write_text(data + TINY[TINY.index("[augment]") :].replace("epochs = 3", "epochs = 1"))
    found, _ = looked(run, "dots.toml")
    pair = [f"{root}/dots-test-000000.tar/part/000003.png", f"{root}/dots-train-000000.tar/part/000003.png"]
    assert found["equal_images"]["test"] == {"count": 1, "pairs": [pair]}
    result = run("teacher", "dots.toml")
    assert result.code == 0, result.err
    assert "data  webdataset in" in result.out


def test_images_without_labels_from_other_tars(root: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for number in range(4):
        (tmp_path / "more" / f"{number}.png").write_bytes(png(300 + number))
    data = opened(root, in_memory=False, workers=0, unlabelled=str(tmp_path / "more"))
    assert isinstance(data.pool.images, StoredImages)
    assert data.unlabelled is not None
    order = torch.tensor([61, 2, 60, 59])
    expected = torch.cat([data.unlabelled.images[1:2], data.train.images[2:3], data.unlabelled.images[:1]])
    assert torch.equal(data.pool.images[order], torch.cat([expected, data.train.images[59:]]))
    assert torch.equal(data.pool.subset(order).images[1:3], expected[1:])


def changed(root: Path, **files: bytes | None) -> None:
    """Change the files of the second sample of a shard by ending; ``None`` removes one."""
    fields = {f"part/000021.{ending}": content for ending, content in files.items()}
    second = {name: content for name, content in {**sample(21), **fields}.items() if content is not None}
    shard(root / "dots-train-000001.tar", [sample(20), second, *samples(22, 18)])


@pytest.mark.parametrize(
    ("files", "settings", "message"),
    [
        (
            {"cls": None},
            {},
            r"000001.tar/part/000021: the sample has no label \(.cls\); its files are .png, .json. data.label",
        ),
        ({"cls": b"apple"}, {}, r"dots-train-000001.tar/part/000021.cls: the label is apple, expected an integer"),
        ({"cls": b""}, {}, "the label is empty"),
        ({"cls": b"-1"}, {}, "the label is -1"),
        ({"cls": b"9" * 5000}, {}, "the label is 9{60}…"),
        ({"json": b"{"}, {"label": "json:label"}, r"000021.json: the label is \{, expected"),
        ({}, {"label": "json:lable"}, r"000000.json: the label is no field 'lable'"),
        ({}, {"label": "json:text"}, "the label is 'left'"),
        ({}, {"label": "json:half"}, "the label is 0.5"),
        ({}, {"label": "json"}, 'expected an ending, such as "cls", or "json:FIELD"'),
        ({}, {"classes": ["left"]}, r"000001.png: has the label 1, but there are 1 classes"),
        ({}, {"classes": ["left", "left"]}, "data.classes names a class twice"),
        (
            {"png": None},
            {},
            r"000021: the sample has no image \(.jpg or .jpeg or .png or .webp\); its files are .cls, .json",
        ),
        ({"jpg": b""}, {}, "the sample has several images"),
        ({"png": b"no image"}, {}, r"000001.tar/part/000021.png: cannot be read as an image"),
        ({"png": png(1, 9)}, {}, r"000000.tar/part/000000.png has 8×8 pixels, .*000021.png has 9×9; data.size"),
        ({"PNG": b""}, {}, "000021.PNG: the sample has two files with this ending"),
        ({}, {"image": "webp"}, r"000000: the sample has no image \(.webp\)"),
        ({}, {"train_shards": "dots-{000000..000004}.tar"}, r"data.train_shards: .*dots-000000.tar does not exist"),
        (
            {},
            {"train_shards": "*.tar"},
            "data.validation_shards: .*dots-val-000000.tar is already among the train shards",
        ),
        ({}, {"test_shards": "tset-*.tar"}, "data.test_shards: no file in .* matches"),
        ({}, {"train_shards": "https://there/a.tar"}, "is not on disk, .*; download it first"),
        ({}, {"train_shards": "{0..99999999}.tar"}, "stands for more than 100,000 files"),
        ({}, {"root": "nowhere"}, "data.root: nowhere does not exist"),
    ],
)
def test_faults_are_reported_by_name(root: Path, files: Files, settings: dict[str, Any], message: str) -> None:
    changed(root, **files)
    with pytest.raises(InputError, match=message):
        open_data("webdataset", **{"root": str(root), **settings})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda tar: tar[:3000], r"dots-train-000001.tar: cannot be read as a tar after the member part/0000"),
        (lambda tar: tar[: tar.index(b"part/000030.png")], "after the member part/000029.json: the mark of the end"),
        (lambda tar: tar.replace(b"part/000030.png", b"part/000031.png", 1), "after the member part/000029.json"),
        (lambda tar: b"", "dots-train-000001.tar: cannot be read as a tar: empty file"),
        (lambda tar: b"no tar at all" * 100, "cannot be read as a tar: .*no tar"),
        (gzip.compress, "dots-train-000001.tar: is compressed by gzip, .*; decompress it with gunzip"),
    ],
    ids=["within a file", "between files", "damaged", "empty", "text", "compressed"],
)
def test_incomplete_tars_are_refused(root: Path, content: Any, message: str) -> None:
    path = root / "dots-train-000001.tar"
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(InputError, match=message):
        opened(root)


def test_a_folder_without_tars_and_names_without_a_split(root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no tar files for training"):
        opened(tmp_path / "empty")
    (root / "dots-val-000000.tar").rename(root / "train-and-test.tar")
    with pytest.raises(InputError, match="has the names of several splits"):
        opened(root)
