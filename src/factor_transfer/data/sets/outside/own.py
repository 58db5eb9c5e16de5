"""Data sets of one's own: ``data.name = "package.module:callable"``."""

from typing import Annotated, Any, Literal

from annotated_types import Ge

from factor_transfer.data.sets.outside.map_style import splits
from factor_transfer.data.split import Origin, Source, Split
from factor_transfer.errors import InputError
from factor_transfer.external import call_external


def load_own(
    name: str,
    *,
    args: dict[str, Any] | None = None,
    size: Annotated[int, Ge(1)] | None = None,
    channels: Literal[1, 3] = 3,
    workers: Annotated[int, Ge(0)] = 0,
) -> Source:
    """The data set that a callable returns: a ``Source``, or two map-style data sets for training and test.

    A map-style data set, such as a ``torch.utils.data.Dataset``, returns an image and its label for an index: a PIL
    image or a uint8 tensor (C, H, W), and an integer. It must return the same image each time. Its attributes
    ``classes`` (names) and ``targets`` (labels) are used, as in torchvision.

    Args:
        name: the callable, ``package.module:callable``. Its module may be in the working directory.
        args: the keyword arguments of the callable.
        size: the number of pixels that the shorter side of each image is scaled to, see ``load_folder``.
        channels: the number of channels: 3 for colour, 1 for grey.
        workers: the number of processes that read images during training if they are too many for memory; 0 reads them
            in the process that trains.

    Raises:
        InputError: if the callable cannot be called, or returns something else.
    """
    made = call_external(name, "data set", dict(args or {}), "the entries of data.args")
    if isinstance(made, Source):
        _check(name, made)
        return made
    if not (isinstance(made, tuple | list) and len(made) == 2 and all(map(_is_map_style, made))):
        raise InputError(
            f"data set {name!r} returns {_kind(made)}; a factor_transfer.data.Source, or a pair of map-style data sets "
            "(train, test) with a length and items is needed"
        )
    train, test = made
    read_train, read_test = splits(
        [(train, f"the training images of {name}"), (test, f"the test images of {name}")], size, channels, workers
    )
    split = read_train()
    count = int(split.labels.max()) + 1
    classes = getattr(train, "classes", None)
    names = tuple(map(str, classes)) if classes is not None else tuple(map(str, range(count)))
    source = Source(names, split, lambda: _checked(name, names, read_test()), origin=Origin(test_size=len(test)))
    _check(name, source)
    return source


def _is_map_style(value: Any) -> bool:
    return hasattr(value, "__len__") and hasattr(value, "__getitem__") and not isinstance(value, str | bytes)


def _kind(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {', '.join(type(one).__name__ for one in value) or 'nothing'}"
    return f"an object of type {type(value).__name__}"


def _check(name: str, source: Source) -> None:
    """Check the labels of a data set, and that the names of its classes differ."""
    if len(set(source.classes)) < len(source.classes):
        raise InputError(f"data set {name!r} names a class twice: {', '.join(source.classes)}")
    for split in (source.train, source.validation):
        if split is not None:
            _checked(name, source.classes, split)


def _checked(name: str, classes: tuple[str, ...], split: Split) -> Split:
    labels = split.labels
    if len(labels) != len(split.images):
        raise InputError(f"data set {name!r} has {len(split.images)} images, but {len(labels)} labels")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        raise InputError(
            f"data set {name!r} has labels from {int(labels.min())} to {int(labels.max())}, but {len(classes)} "
            "classes; labels must be in 0..K-1"
        )
    return split
