"""What a data set was found to be, in one line."""

from factor_transfer.data.dataset import Data
from factor_transfer.errors import printable

_CLASSES = 5  # whose names are said
_LONGEST = 30  # characters of a name


def describe(data: Data) -> str:
    """The data set in one line, for a person to compare with what they meant.

    It says the classes, how many and the first names; how many images each split has, and where they come from; the
    size and the channels of the images; and what was passed over, and why. Names from the disk are escaped.
    """
    origin, (channels, height, width) = data.origin, data.train.images.shape[1:]
    names = [_short(name) for name in data.classes[:_CLASSES]] + ["…"] * (len(data.classes) > _CLASSES)
    parts = [
        f"{len(data.classes)} classes ({', '.join(names)})",
        ", ".join(
            [
                _split("training", len(data.train), origin.train),
                _split("validation", len(data.validation), origin.validation),
                _split("test", origin.test_size, origin.test),
            ]
        ),
        f"{width}×{height} pixels, {channels} {'channel' if channels == 1 else 'channels'}",
    ]
    if origin.passed_over:
        parts.append(f"passed over: {origin.passed_over}")
    place = f" in {printable(origin.place)}" if origin.place else ""
    return f"{data.name}{place}: {'; '.join(parts)}"


def _split(name: str, size: int | None, where: str) -> str:
    return f"{'' if size is None else f'{size:,} '}{name} images{f' ({printable(where)})' if where else ''}"


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
