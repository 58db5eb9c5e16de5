"""The description of a data set in one line."""

from factor_transfer.data.dataset import Data
from factor_transfer.errors import printable

_CLASSES = 5  # the number of classes that are named
_LONGEST = 30  # the longest name of a class, in characters


def describe(data: Data) -> str:
    """The description of a data set in one line, for comparison with what was intended.

    It contains the number of classes and their first names; the number and the origin of the images of each split; the
    size and the channels of the images; and what was skipped, and why. Names from the disk are escaped.

    Args:
        data: the data set.
    """
    origin, (channels, height, width) = data.origin, data.train.images.shape[1:]
    names = [_short(name) for name in data.classes[:_CLASSES]] + ["…"] * (len(data.classes) > _CLASSES)
    unlabelled = [] if data.unlabelled is None else [_split("unlabelled", len(data.unlabelled), origin.unlabelled)]
    parts = [
        f"{len(data.classes)} classes ({', '.join(names)})",
        ", ".join(
            [
                _split("training", len(data.train), origin.train),
                *unlabelled,
                _split("validation", len(data.validation), origin.validation),
                _split("test", origin.test_size, origin.test),
            ]
        ),
        f"{width}×{height} pixels, {channels} {'channel' if channels == 1 else 'channels'}",
    ]
    if origin.skipped:
        parts.append(f"skipped: {origin.skipped}")
    place = f" in {printable(origin.place)}" if origin.place else ""
    return f"{data.name}{place}: {'; '.join(parts)}"


def _split(name: str, size: int | None, where: str) -> str:
    return f"{'' if size is None else f'{size:,} '}{name} images{f' ({printable(where)})' if where else ''}"


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
