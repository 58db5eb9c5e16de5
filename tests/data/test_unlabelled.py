"""Images without labels, from folders or from a data set's own training images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from factor_transfer.data import UNLABELLED, Split, StoredImages, describe, open_data
from factor_transfer.errors import InputError


def picture(path: Path, seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size[::-1] if mode == "L" else (*size[::-1], 3)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)).save(path)


@pytest.fixture
def root() -> Path:
    """A data set of two classes, with ten images of 8×8 pixels each and a test folder."""
    for split, first in (("train", 0), ("test", 100)):
        for label, name in enumerate("ab"):
            for index in range(10):
                picture(Path("root", split, name, f"{index}.png"), first + 10 * label + index)
    return Path("root")


def camera(count: int = 6, folder: str = "more") -> Path:
    for index in range(count):
        picture(Path(folder, f"day {index % 2}", "raw", f"{index}.{'webp' if index == 3 else 'png'}"), 500 + index)
    return Path(folder)


@pytest.mark.parametrize("in_memory", [True, False])
def test_all_images_below_a_folder(root: Path, in_memory: bool) -> None:
    folder = camera()
    (folder / "notes.txt").write_text("none")
    picture(folder / ".thumbnails" / "0.png", 500)
    data = open_data("folder", root=str(root), unlabelled=str(folder), in_memory=in_memory)
    assert data.unlabelled is not None
    assert isinstance(data.unlabelled.images, StoredImages) != in_memory
    assert data.unlabelled.labels.tolist() == [UNLABELLED] * 6
    expected = np.asarray(Image.open(folder / "day 0" / "raw" / "2.png"))
    assert np.array_equal(data.unlabelled.images[1:2][0].permute(1, 2, 0).numpy(), expected)
    pool = data.pool
    assert len(pool) == len(data.train) + 6
    assert torch.equal(pool.labels[: len(data.train)], data.train.labels)
    last = torch.tensor([len(pool) - 1, 0])
    assert torch.equal(pool.images[last][0], data.unlabelled.images[5:6][0])
    assert torch.equal(pool.images[last][1], data.train.images[:1][0])
    line = describe(data)
    assert "18 training images (train/), 6 unlabelled images (more; skipped: " in line
    assert ".txt: 1" in line
    # The teacher does not learn from them, so it stays up to date.
    assert data.fingerprint == open_data("folder", root=str(root), in_memory=in_memory).fingerprint
    assert data.unlabelled_fingerprint is not None


def test_several_folders_and_the_same_one_twice(root: Path) -> None:
    camera(), camera(4, "others")
    data = open_data("folder", root=str(root), unlabelled=["more", "others", "more"])
    assert data.unlabelled is not None
    assert len(data.unlabelled) == 10


def test_other_images_have_another_fingerprint(root: Path) -> None:
    camera()
    before = open_data("folder", root=str(root), unlabelled="more").unlabelled_fingerprint
    picture(Path("more", "new.png"), 900)
    assert open_data("folder", root=str(root), unlabelled="more").unlabelled_fingerprint != before


def test_they_are_scaled_like_the_training_images(root: Path) -> None:
    picture(Path("large", "0.png"), 1, (30, 20))
    data = open_data("folder", root=str(root), size=6, unlabelled="large")
    assert data.unlabelled is not None
    assert data.unlabelled.images.shape == (1, 3, 6, 6)


def test_part_of_the_training_images_may_lose_their_labels() -> None:
    whole, data = open_data("digits"), open_data("digits", labelled=0.1)
    assert data.unlabelled is not None
    assert len(data.train) == 81
    assert len(data.train) + len(data.unlabelled) == len(whole.train)
    counts = data.train.labels.bincount()
    assert counts.max() - counts.min() <= 1  # stratified
    pixels = [sorted(row.numpy().tobytes() for row in split.images[:]) for split in (data.pool, whole.train)]
    assert pixels[0] == pixels[1]
    assert torch.equal(data.validation.labels, whole.validation.labels)
    assert torch.equal(open_data("digits", labelled=0.1).train.images, data.train.images)  # type: ignore[arg-type]
    assert not torch.equal(open_data("digits", labelled=0.1, split_seed=1).train.labels, data.train.labels)


def bad(kind: str, root: Path) -> str | list[str]:
    """A folder, or several, that cannot be used."""
    if kind == "copies":  # of test images, under other names and beside others
        camera()
        for index in range(2):
            Path("more", f"copy {index}.png").write_bytes((root / "test" / "b" / f"{index}.png").read_bytes())
        return "more"
    if kind == "empty":
        Path("empty", "inner").mkdir(parents=True)
        Path("empty", "notes.txt").write_text("none")
    if kind == "damaged":
        camera()
        Path("more", "a.png").write_bytes(b"nonsense")
        return "more"
    if kind == "large":
        picture(Path("large", "0.png"), 1, (9, 8))
    if kind == "grey":
        picture(Path("grey", "0.png"), 1, mode="L")
    if kind == "mixed":
        camera(folder="mixed")
        picture(Path("mixed", "z.png"), 1, (9, 8))
    return kind if kind != "none" else []


def test_grey_pictures_that_are_read_in_colour_beside_others_of_their_kind(tmp_path: Path) -> None:
    for name in "ab":
        for index in range(4):
            picture(tmp_path / "root" / name / f"{index}.png", index, mode="L")
    picture(tmp_path / "more" / "0.png", 9, mode="L")
    for in_memory in (True, False):
        where = str(tmp_path / "root"), str(tmp_path / "more")
        data = open_data("folder", root=where[0], test_fraction=0.5, unlabelled=where[1], in_memory=in_memory)
        assert data.unlabelled is not None
        assert data.unlabelled.images.shape == (1, 3, 8, 8)
    picture(tmp_path / "more" / "0.png", 9)
    with pytest.raises(InputError, match="its images are in colour, but the training images are grey"):
        open_data("folder", root=where[0], test_fraction=0.5, unlabelled=where[1])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nowhere", "data.unlabelled: nowhere does not exist"),
        ("root/train/a/0.png", "data.unlabelled: root/train/a/0.png is not a folder"),
        ("none", "data.unlabelled is empty; name a folder, or omit it"),
        ("empty", "data.unlabelled: empty has no images"),
        ("damaged", r"more/a\.png: cannot be read as an image"),
        ("large", r"0\.png has 9×8 pixels, but the training images have 8×8; data\.size=… scales"),
        ("mixed", r"the images differ in size: .* data\.size=…"),
        ("grey", "its images are grey, but the training images are in colour"),
        (
            "copies",
            r"2 of 20 test images are among the images of data\.unlabelled.*test/b/0\.png = .*copy 0\.png",
        ),
    ],
)
@pytest.mark.parametrize("in_memory", [True, False])
def test_bad_folders(root: Path, kind: str, message: str, in_memory: bool) -> None:
    if kind in ("damaged", "mixed") and not in_memory:
        pytest.skip("an image on disk is read when it is used")
    given = bad(kind, root)
    with pytest.raises(InputError, match=message):
        open_data("folder", root=str(root), unlabelled=given, in_memory=in_memory)


def test_copies_of_test_images_are_found_by_their_pixels() -> None:
    image = open_data("digits").test().images[:1][0, 0]
    Path("more").mkdir()
    Image.fromarray(image.numpy()).save("more/0.png")
    with pytest.raises(InputError, match=r"1 of 899 test images are among the images of data\.unlabelled"):
        open_data("digits", unlabelled="more")
    Image.fromarray(image.T.contiguous().numpy()).save("more/0.png")
    assert open_data("digits", unlabelled="more").pool.labels[-1] == UNLABELLED


def test_either_a_folder_or_a_fraction() -> None:
    with pytest.raises(InputError, match=r"give data\.unlabelled, .* or data\.labelled, .* but not both"):
        open_data("digits", unlabelled="more", labelled=0.5)


def test_images_in_memory_alone_cannot_join_those_on_disk(root: Path) -> None:
    stored = open_data("folder", root=str(root), in_memory=False).train
    with pytest.raises(InputError, match="no files of their own"):
        Split(stored.images[:2], stored.labels[:2]).joined(stored)
