"""A data set, opened: training, validation and test images, and their statistics."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Annotated, Any

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from factor_transfer.data.sets.cifar import load_cifar10, load_cifar100
from factor_transfer.data.sets.digits import load_digits
from factor_transfer.data.sets.fashion_mnist import load_fashion_mnist, load_fashion_mnist_small
from factor_transfer.data.sets.folder import load_folder
from factor_transfer.data.sets.synthetic import load_synthetic
from factor_transfer.data.split import Origin, Source, Split, stratified
from factor_transfer.errors import InputError, choose
from factor_transfer.settings import settings

# So many images on the disk, evenly spaced over the split, are what mean and standard deviation are measured on: to
# read all of them would take as long as an epoch.
STATISTICS_IMAGES = 4096

# A data set is a function; its arguments are what a recipe's [data] table may say of it.
DATASETS: dict[str, Callable[..., Source]] = {
    "digits": load_digits,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "fashion-mnist": load_fashion_mnist,
    "fashion-mnist-small": load_fashion_mnist_small,
    "folder": load_folder,
    "synthetic": load_synthetic,
}


@dataclass(frozen=True)
class Data:
    """A data set, ready for training.

    Attributes:
        classes: names, in the order of the labels.
        train: what gradients come from.
        validation: chooses epochs and settings; of files of its own, or cut from the training images. May be empty.
        test: the test images, read when it is first called. For evaluation alone.
        mean: of each channel, 0..1, for normalisation.
        std: of each channel, 0..1.
        test_is_cut: see ``Source``.
        name: of the data set, see ``DATASETS``.
        origin: where the images of each split come from.
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

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.train.images.shape[1]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that training sees: classes, images and labels of both splits.

        Images on the disk are known by what the disk says of their files, see ``StoredImages.fingerprint``.
        """
        digest = hashlib.sha256("\0".join(self.classes).encode())
        for split in (self.train, self.validation):
            digest.update(str(tuple(split.images.shape)).encode())
            images = split.images
            digest.update(images.contiguous().numpy().data if isinstance(images, Tensor) else images.fingerprint())
            digest.update(split.labels.contiguous().numpy().data)
        return digest.hexdigest()

    def check_unchanged(self) -> None:
        """See that images on the disk are still those that were opened.

        Raises:
            InputError: a file is missing or another one.
        """
        for split in (self.train, self.validation):
            if not isinstance(split.images, Tensor):
                split.images.check_unchanged()


def open_data(
    name: str,
    *,
    validation: Annotated[float, Ge(0), Lt(1)] = 0.1,
    limit: Annotated[int, Ge(1)] | None = None,
    split_seed: Annotated[int, Ge(0)] = 0,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    **options: Any,
) -> Data:
    """Open a data set and, where it has no validation split, cut one from its training images.

    Args:
        name: one of ``DATASETS``.
        validation: the share of the training images that is kept for validation, 0..1; stratified. Not used where the
            data set has a validation split of its own, such as a folder ``val``.
        limit: use only so many of the training images; stratified.
        split_seed: of the random splits. It is apart from the seeds of training, so that runs of several
            seeds share their validation images.
        mean: of each channel, 0..1; measured on the training images if left out, on ``STATISTICS_IMAGES`` of them if
            they are on the disk.
        std: of each channel, 0..1; likewise.
        options: the data set's own keyword arguments, such as ``root``.

    Raises:
        InputError: unknown name, missing or damaged files, or an empty split.
    """
    opener = DATASETS[choose("data set", name, DATASETS)]
    if "split_seed" in settings(opener):
        options["split_seed"] = split_seed
    source = opener(**options)
    origin, train = source.origin, source.train
    if limit is not None and limit < len(train):
        origin = replace(origin, train=_joined(origin.train, f"data.limit: {limit:,} of {len(train):,}"))
        train = train.subset(stratified(train.labels, limit, split_seed)[0])
    if source.validation is not None:
        held = source.validation
        origin = replace(origin, validation=_joined(origin.validation, f"in place of data.validation = {validation:g}"))
    else:
        held_out, kept = stratified(train.labels, round(validation * len(train)), split_seed)
        train, held = train.subset(kept), train.subset(held_out)
        origin = replace(origin, validation=f"{100 * validation:.3g} % of the training images")
    if not len(train):
        raise InputError("no training images are left; give a smaller data.validation or a larger data.limit")
    if len(source.classes) < 2:
        raise InputError(f"there is one class only, {source.classes[0]!r}; a classifier needs two or more")
    lost = set(source.train.labels.tolist()) - set(train.labels.tolist())
    if lost:
        raise InputError(
            f"no training image is left of class {source.classes[min(lost)]!r}; give a smaller data.validation or a "
            "larger data.limit"
        )
    mean_std = _statistics(train, mean, std)
    test = cache(source.test)  # opened once, however many experiments share these images
    return Data(source.classes, train, held, test, *mean_std, source.test_is_cut, name, origin)


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _statistics(
    split: Split, mean: list[float] | None, std: list[float] | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel: as given, measured if not."""
    channels = split.images.shape[1]
    for key, given in (("mean", mean), ("std", std)):
        if given is not None and len(given) != channels:
            raise InputError(
                f"data.{key} has {len(given)} values, the images have {channels} channels: give one a channel"
            )
    if std is not None and min(std) <= 0:
        raise InputError(f"data.std must be above 0, got {std}")
    if mean is not None and std is not None:
        return tuple(mean), tuple(std)
    measured_mean, measured_std = _measure(split)
    return tuple(mean or measured_mean), tuple(std or measured_std)


def _measure(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, 0..1, exact: from a histogram of the 256 values."""
    total = len(split)
    looked = total if isinstance(split.images, Tensor) else min(total, STATISTICS_IMAGES)
    histogram = torch.zeros(split.images.shape[1], 256, dtype=torch.int64)
    for chosen in (torch.arange(looked) * total // looked).split(256):
        for counts, channel in zip(histogram, split.images[chosen].unbind(1), strict=True):
            counts += channel.flatten().bincount(minlength=256)
    means, deviations = [], []
    for counts in histogram.double():
        values = counts.new_tensor(range(256)) / 255
        mean = (counts * values).sum() / counts.sum()
        variance = (counts * (values - mean) ** 2).sum() / counts.sum()
        means.append(round(mean.item(), 6))
        # A constant channel carries nothing; dividing it by one leaves it so.
        deviations.append(round(variance.sqrt().item(), 6) or 1.0)
    return tuple(means), tuple(deviations)
