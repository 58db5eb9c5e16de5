"""Decoding of an image file into pixels."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError, features

from factor_transfer.errors import InputError
from factor_transfer.files import open_regular

# The formats that are read, and the endings of their files. Each is recognised by its first bytes, and decoded by
# pillow or a library that is part of it. Formats that need another program, such as PostScript, are left out.
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
if "avif" in features.modules and features.check("avif"):  # available since pillow 11.3
    FORMATS["AVIF"] = (".avif",)
ENDINGS = frozenset(ending for endings in FORMATS.values() for ending in endings)

_MODES: dict[int, Literal["L", "RGB"]] = {1: "L", 3: "RGB"}
_GREY = {"1", "L", "LA"}  # the modes without colours


# The modes that need no conversion, by the number of channels. A palette ("P") consists of colours.
_UNCONVERTED = {1: {"L", "1"}, 3: {"RGB", "P"}}


def decode(
    path: Path, size: int | None, channels: Literal[1, 3], convert: bool = True, content: bytes | None = None
) -> np.ndarray:
    """Read one image in any of ``FORMATS``, which is recognised by the content of the file, not by its name.

    The image is rotated according to its EXIF data, and its transparency is removed. Only the first of several frames
    or pages is read.

    Args:
        path: the image file.
        size: the number of pixels that the shorter side is scaled to (bilinear), before the size×size pixels at the
            centre are cropped; ``None`` keeps the size of the image.
        channels: the number of channels: 3 for colour, 1 for grey.
        convert: whether to convert an image with other channels or with transparency; it is an error otherwise.
        content: the content of the file, if it was read before; ``path`` is then only its name in messages.

    Returns:
        The pixels, uint8 (H, W, C).

    Raises:
        InputError: if the file is missing, damaged, too large or not a regular file, or has other than 8 bits per
            channel, or would need a conversion that ``convert`` does not allow.
    """
    with _opened(path, content) as file:
        if file.mode.startswith(("I", "F")) or any(";16" in str(tile) for tile in file.tile):
            raise InputError(f"{path}: does not have 8 bits per channel (mode {file.mode}); convert it first")
        if not convert:
            _check_mode(path, file, channels)
        return fit(ImageOps.exif_transpose(file), size, channels)


def fit(image: Image.Image, size: int | None, channels: Literal[1, 3]) -> np.ndarray:
    """The pixels of an image without transparency, scaled and cropped; see ``decode``.

    Returns:
        The pixels, uint8 (H, W, C).
    """
    if "transparency" in image.info:  # transparent colours of a palette, which only RGBA can represent
        image = image.convert("RGBA")
    image = image.convert(_MODES[channels])
    if size is not None:
        # Scaling only the centre is less work than cropping afterwards, and differs by at most half a pixel.
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        square = (left, top, left + side, top + side)
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=square)
    return np.asarray(image).reshape(image.height, image.width, channels)


def read_header(path: Path) -> tuple[Literal[1, 3], int]:
    """The number of channels of an image and the length of its shorter side in pixels; only its header is read.

    Args:
        path: the image file, in any of ``FORMATS``.

    Raises:
        InputError: if the file is missing, is not an image, or is not a regular file.
    """
    with _opened(path) as file:
        return 1 if file.mode in _GREY else 3, min(file.size)


@contextmanager
def _opened(path: Path, content: bytes | None = None) -> Iterator[ImageFile.ImageFile]:
    """A context in which an image file is open; its errors become ``InputError``."""
    try:
        stream = open_regular(path) if content is None else BytesIO(content)
        # Opening reads only the header, and fails for images with twice the number of pixels that pillow warns at.
        with stream, Image.open(stream, formats=tuple(FORMATS)) as file:
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
    # The type of the error for a damaged image depends on its format and on the damage.
    except Exception as error:
        raise InputError(f"{path}: cannot be read as an image: {error}") from error


def _check_mode(path: Path, file: Image.Image, channels: int) -> None:
    """Raise an error for an image with other channels or with transparency."""
    transparent = file.has_transparency_data
    if file.mode in _UNCONVERTED[channels] and not transparent:
        return
    has = f"{len(file.getbands())} {'channels' if file.getbands()[1:] else 'channel'} ({file.mode})"
    alpha = ", one of them alpha" if transparent and file.mode != "P" else ", with transparency" if transparent else ""
    raise InputError(
        f"{path}: has {has}{alpha}, but the network takes {channels}. Convert it first, or add --convert to convert it "
        "like the training images"
    )
