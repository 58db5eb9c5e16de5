"""Opening a data set: training, validation and test images, and their statistics."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from factor_transfer.data.sets.cifar.load import load_cifar10, load_cifar100
from factor_transfer.data.sets.digits import load_digits
from factor_transfer.data.sets.fashion_mnist import load_fashion_mnist, load_fashion_mnist_small
from factor_transfer.data.sets.folder import load_folder
from factor_transfer.data.sets.outside.huggingface import load_huggingface
from factor_transfer.data.sets.outside.own import load_own
from factor_transfer.data.sets.outside.webdataset import load_webdataset
from factor_transfer.data.sets.synthetic import load_synthetic
from factor_transfer.data.sets.unlabelled import check_apart, load_unlabelled
from factor_transfer.data.split import Origin, Source, Split, stratified
from factor_transfer.errors import InputError, choose
from factor_transfer.settings import settings

# The number of images, evenly spaced over the split, that mean and standard deviation are measured on if the images are
# on disk: reading all of them would take as long as an epoch.
STATISTICS_IMAGES = 4096

# Each data set is a function, whose keyword arguments are its settings in the [data] table of a recipe.
DATASETS: dict[str, Callable[..., Source]] = {
    "digits": load_digits,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "fashion-mnist": load_fashion_mnist,
    "fashion-mnist-small": load_fashion_mnist_small,
    "folder": load_folder,
    "synthetic": load_synthetic,
    "huggingface": load_huggingface,
    "webdataset": load_webdataset,
}

# Prefixes of the names of networks, which are not modules with data sets.
_ZOOS = ("timm", "torchvision", "transformers")


def data_set(name: str) -> Callable[..., Source]:
    """The function that opens a data set.

    Args:
        name: the name of the data set: one of ``DATASETS``, or ``package.module:callable``.

    Raises:
        InputError: if there is no such data set.
    """
    if ":" in name and name.partition(":")[0] not in _ZOOS:
        return partial(load_own, name)
    return DATASETS[choose("data set", name, DATASETS)]


@dataclass(frozen=True)
class Data:
    """A data set, ready for training.

    Attributes:
        classes: the names of the classes, in the order of the labels.
        train: the training images.
        validation: the images that select epochs and settings: a split of the data set's own, or a part of its
            training images. May be empty.
        test: a function that returns the test images, which are read when it is first called. Only for evaluation.
        mean: the mean of each channel, in 0..1, for normalisation.
        std: the standard deviation of each channel, in 0..1.
        test_is_cut: whether the test images are a part of the same files as the training images, see ``Source``.
        name: the name of the data set, see ``DATASETS``.
        origin: a description of where the images of each split come from.
        unlabelled: the images without labels; ``None`` if there are none.
    """

    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Callable[[], Split]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    test_is_cut: bool = False
    name: str = ""
    origin: Origin = field(default_factory=Origin)
    unlabelled: Split | None = None

    @cached_property
    def pool(self) -> Split:
        """All images that a student can learn from: the training images, followed by those without labels."""
        return self.train if self.unlabelled is None else self.train.joined(self.unlabelled)

    @property
    def channels(self) -> int:
        """The number of channels of an image."""
        return self.train.images.shape[1]

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of the classes, and of the images and labels of the training and validation splits.

        Images on disk are identified by the metadata of their files, see ``StoredImages.fingerprint``.
        """
        digest = hashlib.sha256("\0".join(self.classes).encode())
        for split in (self.train, self.validation):
            _update(digest, split)
        return digest.hexdigest()

    @cached_property
    def unlabelled_fingerprint(self) -> str | None:
        """The SHA-256 of the images without labels, like ``fingerprint``; ``None`` if there are none."""
        if self.unlabelled is None:
            return None
        digest = hashlib.sha256()
        _update(digest, self.unlabelled)
        return digest.hexdigest()

    def check_unchanged(self) -> None:
        """Check that images on disk have not changed since their fingerprint was computed.

        Raises:
            InputError: if a file is missing or has changed.
        """
        for split in (self.train, self.validation, self.unlabelled):
            if split is not None and not isinstance(split.images, Tensor):
                split.images.check_unchanged()


def _update(digest: "hashlib._Hash", split: Split) -> None:
    """Add the images and labels of a split to a digest."""
    digest.update(str(tuple(split.images.shape)).encode())
    images = split.images
    digest.update(images.contiguous().numpy().data if isinstance(images, Tensor) else images.fingerprint())
    digest.update(split.labels.contiguous().numpy().data)


def open_data(
    name: str,
    *,
    validation: Annotated[float, Ge(0), Lt(1)] = 0.1,
    limit: Annotated[int, Ge(1)] | None = None,
    unlabelled: str | list[str] | None = None,
    labelled: Annotated[float, Gt(0), Lt(1)] | None = None,
    split_seed: Annotated[int, Ge(0)] = 0,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    **options: Any,
) -> Data:
    """Open a data set, and split off a part of its training images if it has no validation split.

    Args:
        name: the name of the data set, one of ``DATASETS``, or ``package.module:callable``, see ``load_own``.
        validation: the fraction of the training images that is used for validation, in 0..1, stratified by class. It
            has no effect if the data set has its own validation split, such as a folder ``val``.
        limit: the number of training images to use, stratified by class. All are used by default.
        unlabelled: a folder of images without labels, or several, with any folders inside them. The paraphraser and
            the student also learn from these images.
        labelled: the fraction of the training images whose labels are used, in 0..1, stratified by class; the others
            become images without labels. This simulates missing labels, for studies. All labels are used by default.
        split_seed: the seed of the random splits. It is separate from the seeds of training, so that runs with
            different seeds share their validation images.
        mean: the mean of each channel, in 0..1. By default it is measured on the training images, on
            ``STATISTICS_IMAGES`` of them if they are on disk.
        std: the standard deviation of each channel, in 0..1. By default it is measured like ``mean``.
        options: the keyword arguments of the data set, such as ``root``.

    Raises:
        InputError: if there is no data set of this name, files are missing or damaged, a split is empty, or a test
            image is also among the images without labels.

    Example:
        >>> from factor_transfer.data import open_data
        >>> data = open_data("digits", validation=0.1)
        >>> data.train.images.shape, len(data.validation)
        (torch.Size([808, 1, 8, 8]), 90)
    """
    opener = data_set(name)
    if "split_seed" in settings(opener):
        options["split_seed"] = split_seed
    source = opener(**options)
    origin, train = source.origin, source.train
    if limit is not None and limit < len(train):
        origin = replace(origin, train=_joined(origin.train, f"data.limit: {limit:,} of {len(train):,}"))
        train = train.subset(stratified(train.labels, limit, split_seed)[0])
    if source.validation is not None:
        validation_split = source.validation
        origin = replace(origin, validation=_joined(origin.validation, f"instead of data.validation = {validation:g}"))
    else:
        held_out, remaining = stratified(train.labels, round(validation * len(train)), split_seed)
        train, validation_split = train.subset(remaining), train.subset(held_out)
        origin = replace(origin, validation=f"{100 * validation:.3g} % of the training images")
    without_labels = None
    if labelled is not None:
        if unlabelled is not None:
            raise InputError("give data.unlabelled, a folder, or data.labelled, a fraction, but not both")
        chosen, others = stratified(train.labels, round(labelled * len(train)), split_seed)
        train, without_labels = train.subset(chosen), train.subset(others).without_labels()
        origin = replace(origin, unlabelled=f"the training images but for data.labelled = {labelled:g}")
    if not len(train):
        raise InputError("no training images are left; choose a smaller data.validation or a larger data.limit")
    if len(source.classes) < 2:
        raise InputError(f"there is only one class, {source.classes[0]!r}; a classifier needs at least two")
    lost = set(source.train.labels.tolist()) - set(train.labels.tolist())
    if lost:
        raise InputError(
            f"no training image of class {source.classes[min(lost)]!r} is left; choose a smaller data.validation or a "
            f"larger data.{'limit' if labelled is None else 'labelled'}"
        )
    mean_std = _statistics(train, mean, std)
    test = cache(source.test)  # experiments that share the data share the test images
    if unlabelled is not None:
        folders = [unlabelled] if isinstance(unlabelled, str) else unlabelled
        scales = "size" in settings(opener)
        without_labels, found = load_unlabelled(folders, train, options.get("size"), scales, options.get("workers"))
        check_apart(without_labels, test())
        origin = replace(origin, unlabelled=found)
    return Data(
        source.classes, train, validation_split, test, *mean_std, source.test_is_cut, name, origin, without_labels
    )


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def check_range(mean: list[float] | None, std: list[float] | None, table: str = "") -> None:
    """Check that statistics can be those of pixel values in 0..1.

    Args:
        mean: the mean of each channel.
        std: the standard deviation of each channel.
        table: what stands before their names in a message, such as ``"data."``.

    Raises:
        InputError: if they cannot.
    """
    if any(not 0 <= value <= 1 for value in mean or ()) or any(value > 1 for value in std or ()):
        raise InputError(
            f"{table}mean and {table}std are those of pixel values in 0..1; divide those of values in 0..255 by 255"
        )


def _statistics(
    split: Split, mean: list[float] | None, std: list[float] | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and standard deviation of each channel: the given ones, or else measured."""
    channels = split.images.shape[1]
    for key, given in (("mean", mean), ("std", std)):
        if given is not None and len(given) != channels:
            raise InputError(
                f"data.{key} has {len(given)} values, but the images have {channels} channels; give one value per "
                "channel"
            )
    check_range(mean, std, "data.")
    if std is not None and min(std) <= 0:
        raise InputError(f"data.std must be greater than 0, got {std}")
    if mean is not None and std is not None:
        return tuple(mean), tuple(std)
    measured_mean, measured_std = _measure(split)
    return tuple(mean or measured_mean), tuple(std or measured_std)


def _measure(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The exact mean and standard deviation of each channel, in 0..1, from a histogram of the 256 values."""
    total = len(split)
    measured = total if isinstance(split.images, Tensor) else min(total, STATISTICS_IMAGES)
    histogram = torch.zeros(split.images.shape[1], 256, dtype=torch.int64)
    for indices in (torch.arange(measured) * total // measured).split(256):
        for counts, channel in zip(histogram, split.images[indices].unbind(1), strict=True):
            counts += channel.flatten().bincount(minlength=256)
    means, deviations = [], []
    for counts in histogram.double():
        values = counts.new_tensor(range(256)) / 255
        mean = (counts * values).sum() / counts.sum()
        variance = (counts * (values - mean) ** 2).sum() / counts.sum()
        means.append(round(mean.item(), 6))
        # A constant channel is divided by 1 instead of 0.
        deviations.append(round(variance.sqrt().item(), 6) or 1.0)
    return tuple(means), tuple(deviations)
