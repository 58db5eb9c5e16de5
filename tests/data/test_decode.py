"""One image, from its file to its pixels: formats, damage, and what is no file."""

import io
import os
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from factor_transfer.data.decode import ENDINGS, FORMATS, decode
from factor_transfer.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
LOSSY = {"JPEG", "WEBP", "AVIF"}


def encoded(form: str, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(file, form)
    return file.getvalue()


@pytest.mark.parametrize("form", FORMATS)
def test_each_format_is_read_whatever_the_file_is_called(tmp_path: Path, form: str) -> None:
    (tmp_path / "x.any").write_bytes(encoded(form))
    found = decode(tmp_path / "x.any", None, 3)
    assert found.shape == (6, 9, 3)
    if form not in LOSSY:
        assert np.array_equal(found, PIXELS)
    assert decode(tmp_path / "x.any", 4, 1).shape == (4, 4, 1)


def test_formats_that_pillow_writes_by_these_endings() -> None:
    """Each ending is one that pillow itself takes for that format."""
    known = Image.registered_extensions()
    assert {ending: known[ending] for ending in ENDINGS} == {
        ending: form for form, endings in FORMATS.items() for ending in endings
    }


@pytest.mark.parametrize("form", ["TGA", "PCX", "ICO", "EPS"])
def test_other_formats_are_refused(tmp_path: Path, form: str) -> None:
    (tmp_path / "x.png").write_bytes(encoded(form))
    with pytest.raises(
        InputError, match=r"x\.png: cannot be read as an image: it is damaged, or in none of these formats"
    ):
        decode(tmp_path / "x.png", None, 3)


@pytest.mark.parametrize("form", sorted({"GIF", "TIFF", "WEBP", "PNG", "AVIF"} & FORMATS.keys()))
def test_the_first_of_several_frames_is_read(tmp_path: Path, form: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 0, 250))]
    frames[0].save(tmp_path / "x", form, save_all=True, append_images=frames[1:])
    assert np.abs(decode(tmp_path / "x", None, 3).astype(int) - (250, 0, 0)).max() <= 4


@pytest.mark.parametrize(("form", "mode"), [("TIFF", "I;16"), ("TIFF", "F"), ("PPM", "I"), ("JPEG2000", "I;16")])
def test_values_of_more_than_8_bits_are_refused(tmp_path: Path, form: str, mode: str) -> None:
    Image.new(mode, (6, 4)).save(tmp_path / "x", form)
    with pytest.raises(InputError, match="x: does not have 8 bits per channel"):
        decode(tmp_path / "x", None, 1)


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=40)
@given(data=st.data())
def test_a_damaged_image_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, form: str, data: st.DataObject
) -> None:
    whole = encoded(form)
    at = data.draw(st.integers(0, len(whole) - 1))
    part = data.draw(st.binary(max_size=4))
    path = tmp_path_factory.getbasetemp() / "damaged image"
    path.write_bytes(data.draw(st.sampled_from([whole[:at], whole[:at] + part + whole[at + len(part) :]])))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(InputError):
            assert decode(path, 4, 3).shape == (4, 4, 3)


def test_a_pipe_in_place_of_an_image_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "link.png").symlink_to("fifo.png")
    (tmp_path / "folder.png").mkdir()
    for name, kind in (("fifo", r"a FIFO"), ("zero", "a device"), ("link", "a FIFO"), ("folder", "a folder")):
        with pytest.raises(InputError, match=rf"{name}\.png is {kind}.*, but a regular file is expected; remove it"):
            decode(tmp_path / f"{name}.png", None, 3)
    (tmp_path / "real.png").write_bytes(encoded("PNG"))
    (tmp_path / "link.png").unlink()
    (tmp_path / "link.png").symlink_to("real.png")
    assert np.array_equal(decode(tmp_path / "link.png", None, 3), PIXELS)
