"""One image, from its file to its pixels."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError, features

from factor_transfer.errors import InputError
from factor_transfer.files import open_regular

# The formats that are read, and the endings of their files. Each says what it is in its first bytes, and is decoded by
# pillow itself or a library that it comes with; no other program is called, as it is for PostScript.
FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
}
if "avif" in features.modules and features.check("avif"):  # since pillow 11.3
    FORMATS["AVIF"] = (".avif",)
ENDINGS = frozenset(ending for endings in FORMATS.values() for ending in endings)

_MODES: dict[int, Literal["L", "RGB"]] = {1: "L", 3: "RGB"}
_GREY = {"1", "L", "LA"}  # modes without colours


# What is as it should be, where nothing may be converted. A palette's colours are colours.
_AS_IT_IS = {1: {"L", "1"}, 3: {"RGB", "P"}}


def decode(path: Path, size: int | None, channels: Literal[1, 3], convert: bool = True) -> np.ndarray:
    """Read one image, of any of ``FORMATS``; its content says of which, not its name.

    It is turned as its EXIF data say, and loses its transparency. Of several frames or pages, the first is read.

    Args:
        path: the file.
        size: scale the image so that its shorter side has this many pixels, and keep the size×size pixels at its
            centre; ``None`` leaves it as large as it is.
        channels: 3 for colour, 1 for grey.
        convert: whether an image of other channels, or with transparency, is converted, or refused.

    Returns:
        uint8 (H, W, C).

    Raises:
        InputError: the file is missing, damaged, too large, not of 8 bits a channel, or not as it should be; or what is
            there is no regular file.
    """
    with _opened(path) as file:
        if file.mode.startswith(("I", "F")) or any(";16" in str(tile) for tile in file.tile):
            raise InputError(f"{path}: its values are not of 8 bits (mode {file.mode}); convert it first")
        if not convert:
            _refuse_others(path, file, channels)
        image: Image.Image = ImageOps.exif_transpose(file)
        if "transparency" in image.info:  # a palette's transparent colours, which only RGBA can hold
            image = image.convert("RGBA")
        image = image.convert(_MODES[channels])
        if size is not None:
            # Scaling the centre alone gives what a crop afterwards would, to half a pixel, for less work.
            side = min(image.size)
            left, top = (image.width - side) / 2, (image.height - side) / 2
            square = (left, top, left + side, top + side)
            image = image.resize((size, size), Image.Resampling.BILINEAR, box=square)
        return np.asarray(image).reshape(image.height, image.width, channels)


def read_header(path: Path) -> tuple[Literal[1, 3], int]:
    """The channels of an image, and its shorter side in pixels; only the file's first bytes are read.

    Args:
        path: the file, of any of ``FORMATS``.

    Raises:
        InputError: the file is missing, or no image; or what is there is no regular file.
    """
    with _opened(path) as file:
        return 1 if file.mode in _GREY else 3, min(file.size)


@contextmanager
def _opened(path: Path) -> Iterator[ImageFile.ImageFile]:
    """An image file, of which the header is read; what goes wrong with it becomes an ``InputError``."""
    try:
        # Opening reads the header alone, and refuses what has twice the pixels that pillow warns at.
        with open_regular(path) as content, Image.open(content, formats=tuple(FORMATS)) as file:
            if Image.MAX_IMAGE_PIXELS and file.width * file.height > Image.MAX_IMAGE_PIXELS:
                raise InputError(f"{path}: refused, {file.width}×{file.height} pixels are too many")
            yield file
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{path}: refused: {error}") from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{path}: cannot be read as an image: it is damaged, or in none of these formats: {', '.join(FORMATS)}"
        ) from error
    # What a damaged image raises depends on its format and on where the damage is.
    except Exception as error:
        raise InputError(f"{path}: cannot be read as an image: {error}") from error


def _refuse_others(path: Path, file: Image.Image, channels: int) -> None:
    """Refuse an image of other channels, or with an alpha channel."""
    transparent = file.has_transparency_data
    if file.mode in _AS_IT_IS[channels] and not transparent:
        return
    has = f"{len(file.getbands())} {'channels' if file.getbands()[1:] else 'channel'} ({file.mode})"
    alpha = ", one of them alpha" if transparent and file.mode != "P" else ", with transparency" if transparent else ""
    raise InputError(
        f"{path}: has {has}{alpha}; the network takes {channels}. Convert it first, or add --convert, which does "
        "what is done to training images"
    )
