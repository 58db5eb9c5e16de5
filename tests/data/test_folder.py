"""Folders of images."""

import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from factor_transfer.data.sets.folder import load_folder
from factor_transfer.errors import InputError

RED, BLUE = (200, 0, 0), (0, 0, 200)


def save(
    path: Path, colour: object = RED, size: tuple[int, int] = (6, 4), mode: str = "RGB", **options: object
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)  # type: ignore[arg-type]
    return path


def test_train_and_test_folders(tmp_path: Path) -> None:
    save(tmp_path / "train/dog/2.png", BLUE)
    save(tmp_path / "train/dog/1.PNG", RED)
    save(tmp_path / "train/cat/deep/er/x.jpeg", (0, 120, 0))
    save(tmp_path / "test/dog/1.JPG", BLUE)
    (tmp_path / "train/dog/notes.txt").write_text("no image")
    (tmp_path / "train/dog/.hidden.png").write_text("no image")
    (tmp_path / "train/dog/.cache").mkdir()
    (tmp_path / "train/dog/.cache/x.png").write_text("no image")
    (tmp_path / "train/.git").mkdir()
    (tmp_path / "train/readme.png").write_text("no image")
    source = load_folder(root=str(tmp_path))
    assert source.classes == ("cat", "dog")
    assert source.train.labels.tolist() == [0, 1, 1]
    assert source.train.labels.dtype == torch.int64
    assert source.train.images.shape == (3, 3, 4, 6)
    assert source.train.images.dtype == torch.uint8
    assert source.train.images[1:][:, :, 0, 0].tolist() == [list(RED), list(BLUE)]
    test = source.test()
    assert test.labels.tolist() == [1]  # a class may have no test images
    assert test.images.shape == (1, 3, 4, 6)


@pytest.mark.parametrize("layout", ["train", "."])
def test_without_a_test_folder_the_split_is_stratified(tmp_path: Path, layout: str) -> None:
    for shade in range(10):
        save(tmp_path / layout / "a" / f"{shade}.png", (shade, 0, 0))
        save(tmp_path / layout / "b" / f"{shade}.png", (100 + shade, 0, 0))

    def shades(seed: int) -> tuple[list[int], list[int]]:
        source = load_folder(root=str(tmp_path), test_fraction=0.3, split_seed=seed)
        assert source.train.labels.tolist() == [0] * 7 + [1] * 7
        assert source.test().labels.tolist() == [0] * 3 + [1] * 3
        return source.train.images[:][:, 0, 0, 0].tolist(), source.test().images[:][:, 0, 0, 0].tolist()

    train, test = shades(0)
    assert sorted(train + test) == [*range(10), *range(100, 110)]
    assert shades(0) == (train, test)
    assert shades(1) != (train, test)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_size_scales_the_shorter_side_and_keeps_the_centre(tmp_path: Path, size: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 12, 3), np.uint8)
    wide, tall = Image.fromarray(pixels), Image.fromarray(pixels.transpose(1, 0, 2))
    (tmp_path / "train/a").mkdir(parents=True)
    tall.save(tmp_path / "train/a/tall.png")
    wide.save(tmp_path / "train/a/wide.png")
    save(tmp_path / "test/a/long.png", size=(2, 3_000))
    source = load_folder(root=str(tmp_path), size=size)
    scaled = wide.resize((3 * size, size), Image.Resampling.BILINEAR)
    expected = np.array(scaled.crop((size, 0, 2 * size, size))).astype(int)
    found_tall, found_wide = source.train.images[:].int().numpy()
    assert np.abs(found_wide.transpose(1, 2, 0) - expected).max() <= 1  # pillow's rounding
    assert np.abs(found_tall.transpose(2, 1, 0) - expected).max() <= 1
    assert source.test().images.shape == (1, 3, size, size)


def test_size_is_antialiased(tmp_path: Path) -> None:
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    (tmp_path / "train/a").mkdir(parents=True)
    Image.fromarray(board).save(tmp_path / "train/a/x.png")
    save(tmp_path / "test/a/x.png")
    images = load_folder(root=str(tmp_path), size=8, channels=1).train.images[:].int()
    assert (images - 127).abs().max() <= 8


def test_channels(tmp_path: Path) -> None:
    save(tmp_path / "train/a/1.png", 77, mode="L")
    save(tmp_path / "train/a/2.png", (10, 20, 30, 0), mode="RGBA")
    save(tmp_path / "train/a/3.jpg", 77, mode="L")
    save(tmp_path / "train/a/4.png", 1, mode="1")
    palette = Image.new("P", (6, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "train/a/5.png", transparency=b"\x00\x80")
    save(tmp_path / "test/a/1.png")
    colour = load_folder(root=str(tmp_path)).train.images[:][:, :, 0, 0]
    assert colour.tolist() == [[77] * 3, [10, 20, 30], [77] * 3, [255] * 3, [10, 20, 30]]
    grey = load_folder(root=str(tmp_path), channels=1).train.images[:]
    assert grey.shape == (5, 1, 4, 6)
    assert grey[:, 0, 0, 0].tolist() == [77, 18, 77, 255, 18]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: the top row is the right side
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8] = 255
    for folder in ("train", "test"):
        (tmp_path / folder / "a").mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / folder / "a/x.jpg", exif=exif)
    images = load_folder(root=str(tmp_path), channels=1).train.images[:]
    assert images.shape == (1, 1, 32, 16)
    assert images[0, 0, :, 8:].float().mean() > 250
    assert images[0, 0, :, :8].float().mean() < 5


def test_sizes_must_agree(tmp_path: Path) -> None:
    save(tmp_path / "train/a/1.png", size=(6, 4))
    odd = save(tmp_path / "train/a/2.png", size=(4, 6))
    save(tmp_path / "train/a/3.png", size=(5, 5))
    test = save(tmp_path / "test/a/1.png", size=(6, 5))
    with pytest.raises(InputError, match=r"1\.png has 6×4 pixels, .*2\.png has 4×6; data\.size="):
        load_folder(root=str(tmp_path))
    odd.unlink()
    (tmp_path / "train/a/3.png").unlink()
    source = load_folder(root=str(tmp_path))
    with pytest.raises(InputError, match=r"train/a/1\.png has 6×4 pixels, .*test/a/1\.png has 6×5"):
        source.test()
    test.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"test/a/1\.png: cannot be read as an image"):
        source.test()


@pytest.mark.parametrize("name", ["x.png", "x.jpg"])
def test_damaged_images(tmp_path: Path, name: str) -> None:
    file = tmp_path / "train/a" / name
    save(tmp_path / "test/a/1.png")
    file.parent.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(file)
    whole = file.read_bytes()
    for damaged in (b"", b"no image", whole[:10], whole[: len(whole) // 2], whole[:40] + bytes(len(whole))):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=f"{name}: cannot be read as an image"):
            load_folder(root=str(tmp_path), size=8)


def test_other_formats_and_depths_are_refused(tmp_path: Path) -> None:
    file = save(tmp_path / "train/a/1.png", 40_000, mode="I;16")
    save(tmp_path / "test/a/1.png")
    with pytest.raises(InputError, match=r"1\.png: does not have 8 bits per channel \(mode I;16\)"):
        load_folder(root=str(tmp_path))
    save(file, format="TGA")
    with pytest.raises(InputError, match=r"1\.png: cannot be read as an image"):
        load_folder(root=str(tmp_path))


@pytest.mark.parametrize("limit", [23, 5])  # pillow warns above its limit and refuses above twice that
@pytest.mark.parametrize("action", ["error", "ignore"])
def test_decompression_bombs_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, action: Literal["error", "ignore"]
) -> None:
    save(tmp_path / "train/a/x.png")  # 24 pixels
    save(tmp_path / "test/a/x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter(action, Image.DecompressionBombWarning)
        with pytest.raises(InputError, match=r"train/a/x\.png: refused"):
            load_folder(root=str(tmp_path))


def test_classes_and_folders_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent: cannot be read: .*data\.root"):
        load_folder(root=str(tmp_path / "absent"))
    with pytest.raises(InputError, match="has no folders; expected one folder per class"):
        load_folder(root=str(tmp_path))
    save(tmp_path / "test/cats/1.png")
    with pytest.raises(InputError, match="a folder 'test' but no folder 'train'"):
        load_folder(root=str(tmp_path))
    save(tmp_path / "train/cat/1.png")
    with pytest.raises(InputError, match=r"test/cats: not a class of the training images; did you mean 'cat'\?"):
        load_folder(root=str(tmp_path))
    (tmp_path / "test/cats").rename(tmp_path / "test/cat")
    assert load_folder(root=str(tmp_path)).classes == ("cat",)
    (tmp_path / "train/empty").mkdir()
    with pytest.raises(InputError, match=r"train/empty: has no images \(JPEG, PNG, WEBP, "):
        load_folder(root=str(tmp_path))


def test_a_split_needs_images_on_both_sides(tmp_path: Path) -> None:
    save(tmp_path / "a/1.png")
    save(tmp_path / "b/1.png")
    with pytest.raises(InputError, match=r"test_fraction=0\.1 of 2 images leaves none"):
        load_folder(root=str(tmp_path), test_fraction=0.1)
    with pytest.raises(InputError, match=r"leaves no image of class 'a' for training"):
        load_folder(root=str(tmp_path), test_fraction=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "data.size is 0"),
        ({"channels": 2}, "data.channels is 2"),
        ({"test_fraction": 0.0}, "data.test_fraction is 0.0"),
        ({"test_fraction": 1.0}, "data.test_fraction is 1.0"),
        ({"test_fraction": float("nan")}, "data.test_fraction is nan"),
        ({"split_seed": -1}, "data.split_seed is -1"),
    ],
)
def test_arguments_out_of_range(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_folder(root=str(tmp_path), **options)
