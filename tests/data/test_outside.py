"""Data sets that other code makes: one's own, and those of Hugging Face's library."""

import io
import json
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import TINY, Run, refused
from factor_transfer.data import Batches, StoredImages, open_data
from factor_transfer.data.sets.outside import map_style
from factor_transfer.data.sets.outside.huggingface import other_splits
from factor_transfer.data.sets.outside.map_style import MapImages
from factor_transfer.errors import InputError

OWN = """
from pathlib import Path
import torch
from PIL import Image
from factor_transfer.data import Source, Split

Path("ran").touch()

class Dots:
    classes = ["left", "right"]
    def __init__(self, count, seed, size=8, tensors=False):
        generator = torch.Generator().manual_seed(seed)
        self.labels = [index % 2 for index in range(count)]
        noise = torch.randint(0, 60, (count, 3, size, size), generator=generator)
        for image, label in zip(noise, self.labels):
            image[..., label * size // 2 : (label + 1) * size // 2] += 150
        self.images, self.tensors = noise.to(torch.uint8), tensors
    def __len__(self):
        return len(self.labels)
    def __getitem__(self, index):
        image = self.images[index]
        return (image if self.tensors else Image.fromarray(image.permute(1, 2, 0).numpy())), self.labels[index]

def pair(train=64, **args):
    return Dots(train, 0, **args), Dots(32, 1, **args)

def source():
    train, test = pair()
    split = Split(test.images, torch.tensor(test.labels))
    return Source(("left", "right"), Split(train.images, torch.tensor(train.labels)), lambda: split)

def wrong(kind):
    train, test = pair()
    if kind == "label":
        train.labels[3] = "apple"
    if kind == "negative":
        train.labels[3] = -1
    if kind == "classes":
        train.classes = ["left"]
    if kind == "floats":
        train.images, train.tensors = train.images / 255, True
    if kind == "empty":
        train.labels = []
    if kind == "raises":
        del train.images
    if kind == "sizes":
        train = [(Image.new("RGB", (8, 8)), 0), (Image.new("RGB", (9, 8)), 1)]
    return {"one": train, "text": "pictures", "three": (train, test, test)}.get(kind, (train, test))

value = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of its own name, since Python imports a name once."""
    name = f"own_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, name)
    return name


def test_a_pair_of_data_sets_of_images_or_tensors(own: str) -> None:
    data = open_data(f"{own}:pair")
    assert data.classes == ("left", "right")
    assert data.train.images.shape == (58, 3, 8, 8)
    assert len(data.test()) == 32
    tensors = open_data(f"{own}:pair", args={"tensors": True})
    assert tensors.fingerprint == data.fingerprint
    assert torch.equal(tensors.test().images[:], data.test().images[:])
    source = open_data(f"{own}:source")
    assert source.fingerprint == data.fingerprint
    assert open_data(f"{own}:pair", args={"train": 50}).fingerprint != data.fingerprint
    assert open_data(f"{own}:pair", args={"size": 12}, size=8, channels=1).train.images.shape == (58, 1, 8, 8)


def test_images_too_large_for_memory_are_read_when_needed(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = open_data(f"{own}:pair")
    monkeypatch.setattr(map_style, "IN_MEMORY", 1)
    data = open_data(f"{own}:pair")
    assert isinstance(data.train.images, MapImages)
    assert isinstance(data.train.images, StoredImages)
    for epoch in (0, 3):
        for one, other in zip(*(Batches(some.train, 16, 1).epoch(epoch, 1) for some in (data, whole)), strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.labels, other.labels)
    assert data.fingerprint == open_data(f"{own}:pair").fingerprint
    data.check_unchanged()
    assert (data.mean, data.std) == (whole.mean, whole.std)
    Path("more").mkdir()
    Image.new("RGB", (8, 8), (9, 9, 9)).save("more/0.png")
    pool = open_data(f"{own}:pair", unlabelled="more").pool
    assert torch.equal(pool.images[-2:], torch.cat([data.train.images[-1:], torch.full((1, 3, 8, 8), 9)]))


def test_a_recipe_with_a_custom_data_set_names_its_code_and_trains(own: str, tmp_path: Path, run: Run) -> None:
    data = f'[data]\nname = "{own}:pair"\nargs = {{ train = 96 }}\ntitle = "Dots"\n'
    Path("dots.toml").write_text(data + TINY[TINY.index("[augment]") :].replace("epochs = 3", "epochs = 1"))
    result = run("run", "dots.toml")
    assert result.code == 0, result.err
    assert result.out.splitlines()[0] == f"runs external code: {own}:pair ({tmp_path / own}.py)"
    assert "2 classes (left, right); 86 training images" in result.out
    (tmp_path / "ran").unlink()
    del sys.modules[own]
    work = "runs/dots"
    for command in (["test", work], ["export", work, "--format", "onnx"], ["report", work]):
        refused(run(*command), f"a data set that external code makes, '{own}:pair'.*--trust-code {own}:pair")
    assert not (tmp_path / "ran").exists()
    trusted = run("test", work, "--trust-code", f"{own}:pair", "--json", "found.json")
    assert trusted.code == 0, trusted.err
    assert trusted.out.splitlines()[0].startswith("runs external code")
    assert json.loads(Path("found.json").read_text())["count"] == 32
    looked = run("check", "dots.toml")
    assert looked.code == 0, looked.err


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("{own}:wrong", {"kind": "label"}, "the label of image 3 is 'apple', expected an integer"),
        ("{own}:wrong", {"kind": "negative"}, "the label of image 3 is -1"),
        ("{own}:wrong", {"kind": "classes"}, "labels from 0 to 1, but 1 classes"),
        ("{own}:wrong", {"kind": "floats"}, r"image 0 is torch.float32 \(3, 8, 8\); a PIL image"),
        ("{own}:wrong", {"kind": "empty"}, "the data set is empty"),
        ("{own}:wrong", {"kind": "raises"}, "item 0 cannot be read as an image and a label: AttributeError"),
        ("{own}:wrong", {"kind": "sizes"}, "image 1 has 9×8; data.size=… scales them|has 9×8 pixels; data.size"),
        ("{own}:wrong", {"kind": "one"}, "returns an object of type Dots; a factor_transfer.data.Source, or a pair"),
        ("{own}:wrong", {"kind": "text"}, "returns an object of type str"),
        ("{own}:wrong", {"kind": "three"}, "returns a tuple of Dots, Dots, Dots"),
        ("{own}:wrong", {"sort": 1}, "raises a TypeError when called with sort = 1: .*the entries of data.args"),
        ("{own}:wrng", {}, "has no 'wrng'; did you mean 'wrong'"),
        ("{own}:value", {}, "is of type int; a function or class is needed"),
        ("nowhere_at_all:x", {}, "module 'nowhere_at_all' cannot be imported"),
        ("a b:x", {}, "is not a valid data set name; a name with a colon is package.module:callable"),
        ("timm:resnet18", {}, "unknown data set 'timm:resnet18'"),
    ],
)
def test_callables_that_return_no_data_set_are_refused(own: str, name: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_data(name.format(own=own), args=args)


needs_datasets = pytest.mark.skipif(find_spec("datasets") is None, reason="datasets is not installed")


def hub(count: int = 40) -> Any:
    """A data set as the hub has them, of noise."""
    datasets: Any = import_module("datasets")
    generator = np.random.default_rng(0)
    pictures = []
    for pixels in generator.integers(0, 256, (count, 9, 7, 3), np.uint8):
        Image.fromarray(pixels).save(content := io.BytesIO(), "PNG")
        pictures.append({"bytes": content.getvalue(), "path": None})
    kinds = datasets.ClassLabel(names=["a", "b", "c", "d"])
    features = datasets.Features({"picture": datasets.Image(), "kind": kinds})
    columns = {"picture": pictures, "kind": [index % 4 for index in range(count)]}
    table = datasets.table.InMemoryTable.from_pydict(columns, schema=features.arrow_schema)
    # With a fingerprint of its own: some builds of pyarrow have tables that the library cannot hash.
    return datasets.Dataset(table, datasets.DatasetInfo(features=features), fingerprint="noise")


def test_a_split_of_huggingface_has_one_use() -> None:
    found = ["train", "validation", "test"]
    assert other_splits("train", None, None, found) == {"validation": "validation", "test": "test"}
    assert other_splits("train", None, None, ["train"]) == {}
    # As for ImageNet, whose test split has no labels. It must not be used for validation as well.
    assert other_splits("train", None, "validation", found) == {"test": "validation"}
    assert other_splits("test", None, None, found) == {"validation": "validation"}
    for validation, test in (("test", "test"), ("train", None), (None, "train")):
        with pytest.raises(InputError, match="which has another use, too; give another split"):
            other_splits("train", validation, test, found)


@needs_datasets
@pytest.mark.filterwarnings("ignore")  # of the library
def test_huggingface_reads_folders_and_parquet_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets: Any = import_module("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    whole = hub()
    both = datasets.DatasetDict(train=whole.select(range(30)), test=whole.select(range(30, 40)))
    both.save_to_disk(tmp_path / "saved")
    whole.to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "empty").mkdir()
    saved = open_data("huggingface", path=str(tmp_path / "saved"), validation=0.2)
    assert saved.classes == ("a", "b", "c", "d")
    assert (saved.train.images.shape, len(saved.validation), len(saved.test())) == ((24, 3, 9, 7), 6, 10)
    assert not saved.test_is_cut
    assert saved.test().labels.tolist() == [index % 4 for index in range(30, 40)]
    first = torch.from_numpy(np.asarray(both["test"][0]["picture"])).permute(2, 0, 1)
    assert torch.equal(saved.test().images[:1][0], first)
    cut = open_data("huggingface", path=str(tmp_path / "rows.parquet"), test_fraction=0.25, size=8, validation=0.1)
    assert cut.test_is_cut
    assert len(cut.test()) == 10
    monkeypatch.setattr(map_style, "IN_MEMORY", 1)
    lazy = open_data("huggingface", path=str(tmp_path / "saved"), validation=0.2)
    assert isinstance(lazy.train.images, MapImages)
    assert torch.equal(lazy.train.images[:], saved.train.images[:])
    cases: list[tuple[dict[str, Any], str]] = [
        ({"path": str(tmp_path / "saved"), "test_split": "tset"}, "unknown split in data.test_split 'tset'.*'test'"),
        ({"path": str(tmp_path / "saved"), "image": "imge"}, "unknown column in data.image 'imge'"),
        ({"path": str(tmp_path / "nowhere")}, "nowhere' does not exist; give a folder"),
        ({"path": str(tmp_path / "empty")}, "cannot be read by datasets"),
    ]
    for settings, message in cases:
        with pytest.raises(InputError, match=message):
            open_data("huggingface", **settings)


def test_huggingface_without_its_library(tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factor_transfer.data.sets.outside.huggingface.installed", lambda _: False)
    refused(
        run("run", tiny, 'data={name="huggingface", path="ylecun/mnist"}'),
        r"needs datasets, which is not installed; .* install '.*\[datasets\]'",
    )
    refused(run("run", tiny, 'data={name="huggingface"}'), "data.path is missing")
