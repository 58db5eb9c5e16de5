"""The order of a trained network's outputs, matched to the order of the data's classes."""

import re
from collections.abc import Sequence

from torch import Tensor, nn

from factor_transfer.config.recipe import Network
from factor_transfer.data.sets.image_files import class_name
from factor_transfer.errors import InputError, printable
from factor_transfer.models.classifier import reorder_outputs
from factor_transfer.pipeline.experiment import Experiment, Statistics

_SHOWN = 3


def output_order(stored: Sequence[str], classes: Sequence[str]) -> list[int] | None:
    """The index of the output for each of the data's classes, matched by name.

    Names are compared exactly first, and then without regard to case, and to spaces, underscores and hyphens, unless
    that makes two names equal.

    Args:
        stored: the names of the outputs, in order.
        classes: the names of the data's classes, in order.

    Returns:
        A permutation of 0..K-1; ``None`` if the names differ.

    Example:
        >>> from factor_transfer.pipeline.weights.classes import output_order
        >>> output_order(["Polar_Bear", "cat"], ["cat", "polar bear"])
        [1, 0]
    """
    for form in (class_name, _loosely):
        outputs, wanted = [form(name) for name in stored], [form(name) for name in classes]
        if len(set(outputs)) == len(outputs) and sorted(outputs) == sorted(wanted):
            indices = {name: index for index, name in enumerate(outputs)}
            return [indices[name] for name in wanted]
    return None


def _loosely(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", class_name(name)).strip().casefold()


def match_classes(
    experiment: Experiment, name: str, section: Network, model: nn.Module, statistics: Statistics, stored: Sequence[str]
) -> None:
    """Permute a network's outputs in place to the order of the data's classes, by the names stored with its weights.

    Args:
        experiment: the experiment.
        name: the name of the stage, such as ``"teacher"``.
        section: the recipe's section of the network.
        model: the network, with its weights.
        statistics: the mean and standard deviation of its input.
        stored: the names of its outputs, in order.

    Raises:
        InputError: if the names differ from the data's and the network will not be trained, or if its outputs cannot be
            permuted.
    """
    classes = experiment.data.classes
    wanted, given = _abbreviated(classes), _abbreviated(stored)
    if section.epochs is not None and output_order(stored, classes) is None:
        # Training adapts the classifier to these classes.
        experiment.say(f"{name}  the names of its outputs ({given}) differ from the data's classes ({wanted})")
        return
    images = experiment.normalize(statistics)(experiment.examples[:2])
    if permute_outputs(name, model, images, stored, classes):
        experiment.say(f"{name}  its outputs ({given}) are permuted to the order of the data's classes")


def permute_outputs(name: str, model: nn.Module, images: Tensor, stored: Sequence[str], classes: Sequence[str]) -> bool:
    """Permute a network's outputs in place to the order of the data's classes.

    Args:
        name: the name of the stage, such as ``"teacher"``.
        model: the network, with its weights.
        images: a few normalised images (B, C, H, W).
        stored: the names of its outputs, in order.
        classes: the names of the data's classes, in order.

    Returns:
        Whether the order was another one.

    Raises:
        InputError: if the names differ, or its outputs cannot be permuted.
    """
    order, wanted, given = output_order(stored, classes), _abbreviated(classes), _abbreviated(stored)
    if order is None:
        raise InputError(
            f"the {name}'s outputs are named {given}, but the data's classes {wanted}. If the outputs are in the order "
            f'of the data\'s classes nevertheless, set {name}.classes="data"; otherwise rename the classes, or give '
            f"the names of the outputs in order: {name}.classes=[…]"
        )
    if order == list(range(len(classes))):
        return False
    if not reorder_outputs(model, images, order):
        raise InputError(
            f"the {name}'s outputs are in the order {given}, the data's classes in the order {wanted}, and its logits "
            "are not computed by a single layer whose rows could be permuted"
        )
    return True


def _abbreviated(names: Sequence[str]) -> str:
    shown = ", ".join(printable(name) for name in names[:_SHOWN])
    return f"{shown}, … ({len(names)})" if len(names) > _SHOWN else shown
