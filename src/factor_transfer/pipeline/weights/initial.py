"""The weights that networks start from: random, a zoo's, a stage's, or of a file from elsewhere."""

from copy import copy
from typing import Any

import torch
from rich.console import Console
from torch import nn

from factor_transfer.config.recipe import Network, Training
from factor_transfer.errors import InputError
from factor_transfer.files import State, load_into, read_weights
from factor_transfer.models.external import zoo_classes, zoo_preprocessing
from factor_transfer.pipeline import artefact
from factor_transfer.pipeline.experiment import Experiment, check_fits
from factor_transfer.pipeline.weights.classes import match_classes
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
    stored: list[str] | None = None  # the names of the outputs, in their order
    if section.weights != "pretrained":
        path = weights_file(section.weights)
        origin = artefact.find(path.parent) if path.name in artefact.STATES else None
        if origin:  # a stage's weights bring the statistics that they were trained on
            check_fits(origin, experiment.data, any_order=True)
            stored = list(origin.record["classes"])
            if section.mean is None:
                mean, std = origin.record["mean"], origin.record["std"]
            load_into(model, read_weights(path), path)
            experiment.say(f"{name}  taken from {section.weights}")
        else:
            load_foreign(experiment, name, section, model)
    else:
        experiment.say(f"{name}  has the weights of {section.model}")
        stored = zoo_classes(section.model, model)
        _name_preprocessing(experiment, name, section.model, model)
    if isinstance(section.classes, list):
        stored = section.classes
    if stored is not None and section.classes != "data" and len(stored) == len(experiment.data.classes):
        match_classes(experiment, name, section, model, (mean, std), stored)
    elif isinstance(section.classes, list):
        raise InputError(
            f"{name}.classes names {len(section.classes)} outputs, the data has {len(experiment.data.classes)} classes"
        )
    if tuple(mean) != tuple(experiment.data.mean):
        own = ", ".join(f"{value:.3g}" for value in mean)
        experiment.say(f"{name}  its images are normalised by its own mean, {own}, and standard deviation")
    return model, record | {"mean": mean, "std": std}


def load_foreign(experiment: Experiment, name: str, section: Training, module: nn.Module) -> None:
    """Load a file of weights, of ours or from elsewhere, and say what was found in it.

    A classifier for another number of classes starts anew where the network is trained on.

    Raises:
        InputError: the weights do not fit.
    """
    assert section.weights is not None
    path = weights_file(section.weights)
    notes: list[str] = []
    state, report = adapt(read_foreign(path, section.weights_key, notes), module)
    head = _other_head(state, module)
    if head and section.epochs is None:
        raise InputError(
            f"weights {path} do not fit {type(module).__name__}: the classifier, {head}, is for "
            f"{len(state[f'{head}.weight'])} classes, the data has {len(experiment.data.classes)}. Give epochs, and "
            "the network is trained on with a new classifier"
        )
    if head:
        own = module.state_dict()
        report.append(
            f"its classifier, {head}, is for {len(state[f'{head}.weight'])} classes; it starts anew, for "
            f"{len(experiment.data.classes)}"
        )
        state |= {key: value for key, value in own.items() if key.startswith(f"{head}.")}
    load_into(module, state, path)
    for line in [f"taken from {section.weights}", *notes, *report]:
        experiment.say(f"{name}  {line}")


def _other_head(state: State, module: nn.Module) -> str | None:
    """The path of the one layer that differs, where it differs in the number of its outputs alone."""
    own = module.state_dict()
    if state.keys() != own.keys():
        return None
    different = [key for key in own if state[key].shape != own[key].shape]
    paths = {key.rpartition(".")[0] for key in different}
    fits = all(state[key].shape[1:] == own[key].shape[1:] and state[key].dim() for key in different)
    (path, *others) = paths or {""}
    return path if path and not others and fits and f"{path}.weight" in different else None


def _name_preprocessing(experiment: Experiment, name: str, model: str, network: nn.Module) -> None:
    """Say what a zoo's weights were trained with that is not followed here."""
    found, size = zoo_preprocessing(model, network), experiment.data.train.images.shape[-1]
    odd = {key: found[key] for key in ("normalised", "scale") if key in found}
    if odd or found.get("size", size) != size:
        listed = ", ".join(f"{key} {value}" for key, value in found.items())
        experiment.say(
            f"{name}  was trained on images prepared otherwise ({listed}); here they stay {size} pixels wide, and only "
            "mean and standard deviation are its own"
        )


def check_networks(experiment: Experiment) -> None:
    """Try both networks, and load all weights that the recipe names, before anything is trained or replaced.

    Raises:
        InputError: a network cannot be used, or weights cannot be had or do not fit.
    """
    _ = experiment.taps
    quiet = copy(experiment)
    quiet.display = Display(Console(quiet=True))
    recipe = experiment.recipe
    for name, section in (("teacher", recipe.teacher), ("student", recipe.student)):
        if section.weights is not None:
            init_network(quiet, name, section)
    if recipe.paraphraser and recipe.paraphraser.weights is not None:
        read_foreign(weights_file(recipe.paraphraser.weights), recipe.paraphraser.weights_key)
