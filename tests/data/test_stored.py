"""Images that stay on the disk: what is trained is what it would be in memory, byte for byte."""

import gc
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import Run, refused
from factor_transfer.data import Augment, Batches, Data, Split, StoredImages, in_order, open_data
from factor_transfer.data import dataset as data_module
from factor_transfer.data.prefetch import ReadAhead
from factor_transfer.data.sets import folder as folder_module
from factor_transfer.errors import InputError
from factor_transfer.training.checkpoint import read_training

# A machine of one core is told that two workers are many.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """60 images of differing sizes in three classes."""
    generator = np.random.default_rng(0)
    for index in range(60):
        folder = tmp_path / "pictures" / f"klass {index % 3} ü"
        folder.mkdir(parents=True, exist_ok=True)
        height, width = generator.integers(9, 15, 2)
        noise = generator.integers(0, 60, (height, width, 3)) + 60 * (index % 3)
        Image.fromarray(noise.astype(np.uint8)).save(folder / f"{index}.png")
    return tmp_path / "pictures"


def opened(root: Path, in_memory: bool | None = False, workers: int | None = 0, **options: Any) -> Data:
    return open_data("folder", root=str(root), in_memory=in_memory, workers=workers, **{"size": 8, **options})


def equal(one: Split, other: Split) -> bool:
    return torch.equal(one.images[:], other.images[:]) and torch.equal(one.labels, other.labels)


def test_stored_images_are_indexed_like_a_tensor(pictures: Path) -> None:
    stored, memory = opened(pictures), opened(pictures, in_memory=True)
    assert isinstance(stored.train.images, StoredImages)
    assert isinstance(memory.train.images, torch.Tensor)
    assert stored.train.images.shape == memory.train.images.shape == (43, 3, 8, 8)
    assert stored.train.images.dtype == memory.train.images.dtype
    chosen = torch.tensor([7, 0, 7, 42])
    assert torch.equal(stored.train.images[chosen], memory.train.images[chosen])
    assert torch.equal(stored.train.images[3:5], memory.train.images[3:5])
    assert equal(stored.train, memory.train)
    assert equal(stored.validation, memory.validation)
    assert equal(stored.test(), memory.test())
    few = [opened(pictures, place, limit=20).train.subset(chosen % 18) for place in (False, True)]
    assert len(few[0]) == 4
    assert equal(*few)
    assert (stored.mean, stored.std) == (memory.mean, memory.std)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_images_in_memory(pictures: Path, workers: int) -> None:
    augment = Augment(crop_padding=2, flip=True)
    stored, memory = (Batches(opened(pictures, in_memory, workers).train, 8, 5, augment) for in_memory in (False, True))
    assert len(stored) == len(memory)
    state = torch.get_rng_state()
    next(stored.epoch(7))  # an epoch may be left early
    for epoch in (0, 1, 0):
        count = 0
        for one, other in zip(stored.epoch(epoch), memory.epoch(epoch), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None)
            assert stored.waited > 0
            assert memory.waited > 0
            count += 1
        assert count == len(stored)
    # Dropout draws from here: to read images must not change what it draws.
    assert torch.equal(torch.get_rng_state(), state)
    assert len(multiprocessing.active_children()) == workers
    del stored
    gc.collect()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_every_image_once_in_order(pictures: Path, workers: int) -> None:
    stored, memory = (list(in_order(opened(pictures, place, workers).test(), 5)) for place in (False, True))
    assert [len(batch.labels) for batch in stored] == [5, 5, 2]
    for one, other in zip(stored, memory, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None)


def test_waiting_time_is_counted_per_epoch(pictures: Path) -> None:
    batches = Batches(opened(pictures).train, 8, 0)
    for _ in batches.epoch(0):
        pass
    whole = batches.waited
    images = batches.epoch(1)
    next(images)
    assert 0 < batches.waited < whole


def test_large_sets_stay_on_the_disk(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 60 * 3 * 8 * 8  # of training and test images
    for limit, kind in ((size + 1, torch.Tensor), (size, StoredImages)):
        monkeypatch.setattr(folder_module, "IN_MEMORY", limit)
        assert isinstance(opened(pictures, in_memory=None).train.images, kind)
        assert isinstance(opened(pictures, in_memory=None).test().images, kind)


def test_statistics_are_of_some_images_all_over_the_set(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_module, "STATISTICS_IMAGES", 4)
    data = opened(pictures)
    some = data.train.images[torch.tensor([0, 10, 21, 32])].double() / 255
    assert data.mean == pytest.approx(some.mean((0, 2, 3)).tolist(), abs=1e-6)
    assert data.std == pytest.approx(some.std((0, 2, 3), correction=0).tolist(), abs=1e-6)
    read: list[object] = []
    monkeypatch.setattr(StoredImages, "read", lambda *_: read.append(1))
    assert opened(pictures, mean=[0.5] * 3, std=[0.25] * 3).std == (0.25, 0.25, 0.25)
    assert not read


def test_the_fingerprint_is_of_names_sizes_times_and_settings(pictures: Path, tmp_path: Path) -> None:
    one = next(path for path in sorted(pictures.rglob("*.png")))
    first = opened(pictures).fingerprint
    assert opened(pictures, workers=2).fingerprint == first
    moved = tmp_path / "elsewhere"
    shutil.copytree(pictures, moved)  # with the times of the files
    assert opened(moved).fingerprint == first

    def changed(**options: Any) -> bool:
        return opened(pictures, validation=0.0, test_fraction=0.02, **options).fingerprint != whole

    whole = opened(pictures, validation=0.0, test_fraction=0.02).fingerprint
    status = one.stat()
    os.utime(one, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert changed()
    os.utime(one, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not changed()
    assert changed(size=9)
    assert changed(channels=1)
    assert changed(limit=50)
    with one.open("ab") as file:
        file.write(b"\0")
    os.utime(one, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert changed()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda path: path.unlink(), r"\d+\.png: cannot be read as an image: .*No such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:60]), r"\d+\.png: cannot be read as an image"),
    ],
)
def test_an_image_lost_during_training_is_named(
    pictures: Path, workers: int, harm: Callable[[Path], Any], message: str
) -> None:
    data = opened(pictures, workers=workers)
    batches = Batches(data.train, 8, 0)
    for _ in batches.epoch(0):
        pass
    for path in pictures.rglob("*.png"):
        harm(path)
    with pytest.raises(InputError, match=message) as caught:
        list(batches.epoch(1))
    assert len(str(caught.value).splitlines()) == 1
    assert multiprocessing.active_children() == []
    with pytest.raises(InputError, match=message):
        list(in_order(data.test(), 5))


def test_a_missing_image_has_no_fingerprint(pictures: Path) -> None:
    data = opened(pictures)
    for path in pictures.rglob("*.png"):
        path.unlink()
    with pytest.raises(InputError, match=r"\.png: cannot be read: No such file"):
        _ = data.fingerprint


def test_without_a_size_the_images_must_have_one(pictures: Path) -> None:
    with pytest.raises(InputError, match=r"the images differ in size: .* pixels, .*png has .*; data\.size="):
        opened(pictures, size=None)
    for path in pictures.rglob("*.png"):
        Image.new("RGB", (7, 6)).save(path)
    assert opened(pictures, size=None).train.images.shape == (43, 3, 6, 7)


def test_a_worker_that_dies_is_reported(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(message: str) -> Any:
        raise RuntimeError(message)
        yield

    images = opened(pictures, workers=2).train.images
    assert isinstance(images, StoredImages)
    ahead = ReadAhead(images)
    monkeypatch.setattr(ahead, "_loader", die("DataLoader worker (pid(s) 5) exited unexpectedly"))
    with pytest.raises(InputError, match=r"decodes images was killed.*data\.workers=0"):
        next(ahead.batches([torch.arange(3)]))
    monkeypatch.setattr(ahead, "_loader", die("another matter"))
    with pytest.raises(RuntimeError, match="another matter"):
        next(ahead.batches([torch.arange(3)]))


def test_a_script_that_is_killed_leaves_no_worker(pictures: Path, tmp_path: Path) -> None:
    """Nor does a worker run the script once more, though it is not written for that."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import multiprocessing, os
from factor_transfer.data import Batches, open_data
data = open_data("folder", root={str(pictures)!r}, size=8, in_memory=False, workers=1)
batches = Batches(data.train, 8, 0).epoch(0)
next(batches)
print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
os.kill(os.getpid(), 9)
""")
    # What it prints is read until its last process has closed it: an orphan would keep the test waiting.
    result = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, text=True, timeout=60)
    assert result.returncode == -9
    (worker,) = result.stdout.split()
    assert not alive(int(worker))


def alive(process: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()  # a zombie has ended
    except FileNotFoundError:
        return False


def test_workers_are_as_many_as_cores_up_to_eight(pictures: Path) -> None:
    images = opened(pictures, workers=None).train.images
    assert isinstance(images, StoredImages)
    assert 1 <= images.workers <= 8
    with pytest.raises(InputError, match=r"data\.workers is -1, expected 0 or more"):
        opened(pictures, workers=-1)


def overrides(root: Path, **options: Any) -> list[str]:
    stages = ("teacher", "paraphraser", "student")
    said = "".join(f", {key}={json.dumps(value)}" for key, value in options.items())
    return [f"data={{name='folder', root='{root}', size=8{said}}}", *(f"{stage}.batch_size=8" for stage in stages)] + [
        f"{stage}.epochs=2" for stage in stages
    ]


def test_a_run_from_the_disk_ends_in_the_same_bytes(pictures: Path, tiny: Path, run: Run) -> None:
    files = []
    for place in ("true", "false"):
        said = overrides(pictures, in_memory=place == "true", workers=2)
        result = run("run", tiny, *said, "--work-dir", place)
        assert result.code == 0, result.err
        assert result.err == ""
        weights = {path.parent.name: path.read_bytes() for path in Path(place).rglob("weights.safetensors")}
        summary = (Path(place) / "summary.json").read_text().replace(f'"{place}/', '"')
        files.append({**weights, "summary": summary.encode()})
    assert len(files[0]) == 4
    assert files[0] == files[1]
    assert run("run", tiny, *overrides(pictures, in_memory=False), "--work-dir", "false").out.count("up to date") == 3


def test_an_image_removed_during_training_loses_nothing(
    pictures: Path, tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = overrides(pictures, in_memory=False, workers=2)
    assert run("teacher", tiny, *said, "--work-dir", "whole").code == 0
    original, away = Batches.epoch, pictures.with_name("away")

    def epoch(self: Batches, number: int, *others: Any) -> Any:
        if number == 1:
            pictures.rename(away)
        return original(self, number, *others)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "epoch", epoch)
        refused(run("teacher", tiny, *said), r"^Error: .*/pictures/klass . ü/\d+\.png: cannot be read as an image")
    assert read_training(Path("runs/tiny/teacher/last.ckpt"))["epoch"] == 1
    away.rename(pictures)
    assert run("teacher", tiny, *said).code == 0
    ours, whole = (Path(place) / "teacher" / "weights.safetensors" for place in ("runs/tiny", "whole"))
    assert ours.read_bytes() == whole.read_bytes()


def test_images_that_change_while_they_are_used(
    pictures: Path, tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is written anew behind the back of the training: what was trained is not delivered."""
    said = overrides(pictures, in_memory=False, workers=0)
    original = Batches.epoch

    def epoch(self: Batches, number: int, *others: Any) -> Any:
        image = sorted(pictures.rglob("*.png"))[0]
        if number == 1:
            image.write_bytes(image.read_bytes())
            os.utime(image, ns=(1, 1))
        return original(self, number, *others)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "epoch", epoch)
        refused(run("teacher", tiny, *said), r"pictures were changed while they were used", "run the command again")
    assert not Path("runs/tiny/teacher/weights.safetensors").exists()
    result = run("teacher", tiny, *said)
    assert result.code == 0
    assert "runs again because its inputs changed (data: " in result.out
