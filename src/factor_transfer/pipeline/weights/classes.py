"""The order of a trained network's outputs, matched to the order of the data's classes."""

import re
from collections.abc import Sequence

from torch import nn

from factor_transfer.config.recipe import Network
from factor_transfer.data.sets.image_files import class_name
from factor_transfer.errors import InputError, printable
from factor_transfer.models.classifier import reorder_outputs
from factor_transfer.pipeline.experiment import Experiment, Statistics

_SHOWN = 3


def output_order(stored: Sequence[str], classes: Sequence[str]) -> list[int] | None:
    """For each of the data's classes, the number of the output that has its name.

    Args:
        stored: the names of the outputs, in their order.
        classes: the names of the data's classes.

    Returns:
        A permutation of 0..K-1; ``None`` if the names are others. Upper and lower case, and underscores and spaces,
        count as equal where no two names become one by that.
    """
    for form in (class_name, _loosely):
        outputs, wanted = [form(name) for name in stored], [form(name) for name in classes]
        if len(set(outputs)) == len(outputs) and sorted(outputs) == sorted(wanted):
            places = {name: number for number, name in enumerate(outputs)}
            return [places[name] for name in wanted]
    return None


def _loosely(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", class_name(name)).strip().casefold()


def match_classes(
    experiment: Experiment, name: str, section: Network, model: nn.Module, statistics: Statistics, stored: Sequence[str]
) -> None:
    """Permute a network's outputs to the order of the data's classes, by the names that its weights are stored with.

    Args:
        experiment: the experiment.
        name: of the stage, such as ``"teacher"``.
        section: the recipe's section of the network.
        model: the network, with its weights.
        statistics: mean and standard deviation of its input.
        stored: the names of its outputs, in their order.

    Raises:
        InputError: the names are others than the data's and the network is not trained on, or its outputs cannot be
            permuted.
    """
    classes = experiment.data.classes
    order = output_order(stored, classes)
    if order is None:
        here, there = _some(classes), _some(stored)
        if section.epochs is not None:  # its classifier is trained on these classes, whatever it knew
            experiment.say(f"{name}  its outputs have other names ({there}) than the data's classes ({here})")
            return
        raise InputError(
            f"the {name}'s outputs are named {there}, the data's classes {here}. If the outputs are in the order of "
            f'the data\'s classes all the same, say {name}.classes="data"; else rename the classes, or give the names '
            f"of the outputs in their order: {name}.classes=[…]"
        )
    if order == list(range(len(classes))):
        return
    images = experiment.normalize(statistics)(experiment.examples[:2])
    if not reorder_outputs(model, images, order):
        raise InputError(
            f"the {name}'s outputs are in the order {_some(stored)}, the data's classes in the order {_some(classes)}, "
            "and its logits are not the outputs of one layer whose rows could be permuted"
        )
    experiment.say(f"{name}  its outputs, in the order {_some(stored)}, are permuted to that of the data's classes")


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(printable(name) for name in names[:_SHOWN])
    return f"{shown}, … ({len(names)})" if len(names) > _SHOWN else shown
