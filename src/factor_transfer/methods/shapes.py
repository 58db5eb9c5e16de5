"""Checks of shapes and numbers, because PyTorch broadcasts some tensors that do not fit, and names none of them."""

from collections.abc import Mapping, Sized

from torch import Tensor

from factor_transfer.errors import InputError


def check_same_images(student: Tensor, teacher: Tensor) -> None:
    """Check that two features (B, ...) are of equally many images.

    Raises:
        InputError: if the numbers of samples differ.
    """
    if student.shape[:1] != teacher.shape[:1]:
        raise InputError(
            f"the student's feature, shape {tuple(student.shape)}, and the teacher's, shape {tuple(teacher.shape)}, "
            "are not of the same images: the numbers of samples differ"
        )


def check_same_shape(name: str, student: Tensor, teacher: Tensor) -> None:
    """Check that two tensors can be compared element by element, because PyTorch would broadcast some that cannot.

    Args:
        name: the name of the loss that compares them, for the message of an error.
        student: the student's tensor.
        teacher: the teacher's tensor.

    Raises:
        InputError: if the shapes differ.
    """
    if student.shape != teacher.shape:
        raise InputError(
            f"{name} compares tensors of the same shape, but the student's has shape {tuple(student.shape)} and the "
            f"teacher's {tuple(teacher.shape)}"
        )


def check_logits(name: str, student: Tensor, teacher: Tensor) -> None:
    """Check that two networks' logits are of the same images and classes.

    Args:
        name: the name of the loss that compares them, for the message of an error.
        student: the student's logits (B, K).
        teacher: the teacher's logits (B, K).

    Raises:
        InputError: if the shapes differ, or are not (B, K).
    """
    if student.dim() != 2 or student.shape != teacher.shape:
        raise InputError(
            f"{name} compares logits (B, K) of the same images and classes, but the student's have shape "
            f"{tuple(student.shape)} and the teacher's {tuple(teacher.shape)}"
        )


def check_channels(name: str, channels: int, side: str, tap: str, feature: Tensor) -> None:
    """Check that a feature is a map with the number of channels that a connector was made for.

    Args:
        name: the name of the connector, for the message of an error.
        channels: the number of channels that it takes.
        side: ``"teacher"`` or ``"student"``, whose feature it is.
        tap: the tap of the feature.
        feature: the feature.

    Raises:
        InputError: if the feature is no map (B, channels, H, W).
    """
    if feature.dim() != 4 or feature.shape[1] != channels:
        raise InputError(
            f"the {name} takes feature maps of {channels} channels, but the {side}'s tap {tap!r} returns a feature of "
            f"shape {tuple(feature.shape)}"
        )


def check_equal_numbers(name: str, parts: Mapping[str, Sized]) -> None:
    """Check that the parts of a term, of which there is one per tap, are equally many, and at least one.

    Args:
        name: the name of the term, for the message of an error.
        parts: the parts by what they are, such as ``"taps of the teacher"``.

    Raises:
        InputError: if their numbers differ or are 0.
    """
    if len({len(part) for part in parts.values()}) != 1 or not all(parts.values()):
        numbers = ", ".join(f"{len(part)} {what}" for what, part in parts.items())
        raise InputError(f"{name} needs one of each per tap, for at least one tap, but got {numbers}")
