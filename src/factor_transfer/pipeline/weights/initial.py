"""The weights that networks start from: random, a zoo's, a stage's, or of a file from elsewhere."""

from copy import copy
from typing import Any

import torch
from rich.console import Console
from torch import nn

from factor_transfer.config.recipe import Network
from factor_transfer.files import load_into, read_weights
from factor_transfer.pipeline import artefact
from factor_transfer.pipeline.experiment import Experiment, check_fits
from factor_transfer.pipeline.weights.foreign import adapt, read_foreign
from factor_transfer.pipeline.weights.zoo import weights_file
from factor_transfer.training.log import Display


def init_network(experiment: Experiment, name: str, section: Network) -> tuple[nn.Module, dict[str, Any]]:
    """A network with the weights that it starts from, and what its record says of it."""
    torch.manual_seed(section.seed)
    model = experiment.build(section, pretrained=section.weights == "pretrained")
    record = experiment.describe(section)
    if section.weights is None:
        mean, std = experiment.statistics(section)
        return model, record | {"mean": mean, "std": std}
    mean, std = experiment.statistics(section, model)
    if section.weights != "pretrained":
        path = weights_file(section.weights)
        origin = artefact.find(path.parent) if path.name in artefact.STATES else None
        if origin:  # a stage's weights bring the statistics that they were trained on
            check_fits(origin, experiment.data)
            if section.mean is None:
                mean, std = origin.record["mean"], origin.record["std"]
            load_into(model, read_weights(path), path)
            experiment.say(f"{name}  taken from {section.weights}")
        else:
            load_foreign(experiment, name, section.weights, model)
    else:
        experiment.say(f"{name}  has the weights of {section.model}")
    if tuple(mean) != tuple(experiment.data.mean):
        own = ", ".join(f"{value:.3g}" for value in mean)
        experiment.say(f"{name}  its images are normalised by its own mean, {own}, and standard deviation")
    return model, record | {"mean": mean, "std": std}


def load_foreign(experiment: Experiment, name: str, weights: str, module: nn.Module) -> None:
    """Load a file of weights, of ours or from elsewhere, and say what was found in it."""
    path = weights_file(weights)
    state, report = adapt(read_foreign(path), module)
    load_into(module, state, path)
    for line in [f"taken from {weights}", *report]:
        experiment.say(f"{name}  {line}")


def check_weights(experiment: Experiment) -> None:
    """Look at all weights that the recipe names, before anything is trained.

    Raises:
        InputError: they cannot be had, or do not fit.
    """
    quiet = copy(experiment)
    quiet.display = Display(Console(quiet=True))
    recipe = experiment.recipe
    for name, section in (("teacher", recipe.teacher), ("student", recipe.student)):
        if section.weights is not None:
            init_network(quiet, name, section)
    if recipe.paraphraser and recipe.paraphraser.weights is not None:
        read_foreign(weights_file(recipe.paraphraser.weights))
