import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from factor_transfer.data import Augment, Batches, Split, Views
from factor_transfer.errors import InputError
from factor_transfer.pipeline.stages.cache_files import Store, check_room

SHAPES = [(2, 3), (5,)]


def filled(folder: Path, images: int = 4, views: int = 3) -> tuple[Store, list[torch.Tensor]]:
    store = Store(folder, SHAPES, images, views)
    store.reserve()
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(views, images, *shape, generator=generator) for shape in SHAPES]
    for view in range(views):
        for part in torch.arange(images).split(3):
            store.write(view, part, [value[view, part] for value in values])
        store.finish(view)
    return store, values


def test_written_values_are_read_in_bfloat16(tmp_path: Path) -> None:
    store, values = filled(tmp_path)
    indices, views = torch.tensor([3, 0, 3]), torch.tensor([1, 2, 0])
    again = Store(tmp_path, SHAPES, 4, 3)
    again.open()
    for one in (store, again):
        for found, value in zip(one(indices, views), values, strict=True):
            assert found.dtype == torch.float32
            assert torch.equal(found, value[views, indices].bfloat16().float())
    assert store.nbytes == sum(path.stat().st_size for path in tmp_path.glob("*.bin")) == 2 * 3 * 4 * 11
    assert again.done == 3


def test_only_whole_views_count(tmp_path: Path) -> None:
    store = Store(tmp_path, SHAPES, 4, 3)
    assert not store.is_reserved()
    store.reserve()
    assert store.is_reserved()
    store.write(0, torch.arange(4), [torch.ones(4, *shape) for shape in SHAPES])
    assert store.done == 0
    store.finish(0)
    assert store.done == 1
    store.finish(0)
    store.reserve()  # going on keeps what is there
    assert torch.equal(store(torch.tensor([2]), torch.tensor([0]))[1], torch.ones(1, 5))
    (tmp_path / "1.bin").write_bytes(b"short")
    assert not store.is_reserved()


ALL = sum(2 * 3 * 4 * size for size in (6, 5))  # bytes


@settings(max_examples=40)
@given(at=st.integers(0, ALL - 1), bit=st.integers(0, 7))
def test_any_flipped_bit_names_file_and_view(tmp_path: Path, at: int, bit: int) -> None:
    if not (tmp_path / "progress.json").exists():
        filled(tmp_path)
    name, at = ("0.bin", at) if at < ALL // 11 * 6 else ("1.bin", at - ALL // 11 * 6)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
    store = Store(tmp_path, SHAPES, 4, 3)
    store.open()
    with pytest.raises(InputError, match=rf"{name} is damaged in view {at * 3 // len(whole) + 1}$"):
        store.verify()
    (tmp_path / name).write_bytes(whole[:at] + whole[at + 1 :])
    assert not store.is_reserved()
    (tmp_path / name).write_bytes(whole)
    store.open()
    store.verify()


def test_only_finished_views_are_verified(tmp_path: Path) -> None:
    filled(tmp_path)
    progress = json.loads((tmp_path / "progress.json").read_text())
    (tmp_path / "progress.json").write_text(json.dumps({"sha256": progress["sha256"][:2]}))
    store = Store(tmp_path, SHAPES, 4, 3)
    store.open()
    store.write(2, torch.arange(4), [torch.zeros(4, *shape) for shape in SHAPES])
    store.verify()
    store.write(1, torch.arange(4), [torch.zeros(4, *shape) for shape in SHAPES])
    with pytest.raises(InputError, match=r"0\.bin is damaged in view 2"):
        store.verify()


@pytest.mark.parametrize("content", ["[]", "{", '{"views": 3}', '{"sha256": [["a"]]}', '{"sha256": 3}', "[" * 9999])
def test_damaged_progress_is_named(tmp_path: Path, content: str) -> None:
    store, _ = filled(tmp_path)
    (tmp_path / "progress.json").write_text(content)
    with pytest.raises(InputError, match=r"progress\.json"):
        store.verify()


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path, [(2,)], 4, 1)
    store.reserve()
    with pytest.raises(InputError, match="not finite"):
        store.write(0, torch.tensor([1]), [torch.tensor([[1.0, float("nan")]])])


def test_a_full_disk_is_reported_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=10**9))
    small, large = Store(tmp_path / "a", [(1000,)], 1000, 8), Store(tmp_path / "b", [(1000,)], 50_000, 8)
    check_room(tmp_path, [small])
    with pytest.raises(InputError, match=r"needs 0\.82 GB, the disk has 1\.00 GB free; give fewer views"):
        check_room(tmp_path, [small, large])
    assert not list(tmp_path.rglob("*.bin"))


@given(st.integers(0, 3), st.integers(0, 50), st.integers(1, 5))
def test_an_epochs_images_are_views_of_theirs(padding: int, seed: int, count: int) -> None:
    augment = Augment(crop_padding=padding, flip=True)
    images = torch.randint(0, 256, (7, 1, 6, 6), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    views = Views(augment, 7, count, seed)
    assert torch.equal(views.draws, Views(augment, 7, count, seed).draws)
    batches = Batches(Split(images, torch.zeros(7, dtype=torch.int64)), 3, seed, augment, views=views)
    seen = set()
    for epoch in range(3):
        for batch in batches.epoch(epoch):
            assert batch.indices is not None
            assert batch.views is not None
            seen |= set(batch.views.tolist())
            for image, index, view in zip(batch.images, batch.indices, batch.views, strict=True):
                expected = augment.apply(images[index][None], views.draws[view, index][None])
                assert torch.equal(image, expected[0])
    assert seen <= set(range(count))


def test_views_of_an_image_differ_and_those_of_another_seed_too() -> None:
    augment = Augment(crop_padding=4, flip=True)
    views, other = Views(augment, 100, 4, 0), Views(augment, 100, 4, 1)
    assert not torch.equal(views.draws[0], views.draws[1])
    assert not torch.equal(views.draws, other.draws)
    # The first views do not depend on how many there are.
    assert torch.equal(Views(augment, 100, 2, 0).draws, views.draws[:2])
    assert views.draws.shape == (4, 100, 3)
