"""The initial weights of networks: random, from a zoo, from a finished stage, or from a file of another project."""

from copy import copy
from posixpath import commonpath
from typing import Any

import torch
from rich.console import Console
from torch import nn

from factor_transfer.config.recipe import Network, Training
from factor_transfer.errors import InputError
from factor_transfer.models.external import zoo_classes, zoo_preprocessing
from factor_transfer.models.inference import eval_mode
from factor_transfer.pipeline import artefact
from factor_transfer.pipeline.experiment import Experiment, check_fits
from factor_transfer.pipeline.weights.classes import match_classes
from factor_transfer.pipeline.weights.foreign import adapt, read_foreign
from factor_transfer.pipeline.weights.zoo import weights_file
from factor_transfer.state_dicts import State, load_into, read_weights
from factor_transfer.taps import Taps
from factor_transfer.training.log import Display
from factor_transfer.training.loggers.epoch_loggers import check_loggers


def init_network(experiment: Experiment, name: str, section: Network) -> tuple[nn.Module, dict[str, Any]]:
    """Build a network with its initial weights.

    Args:
        experiment: the experiment.
        name: the name of the stage, such as ``"teacher"``.
        section: the recipe's section of the network.

    Returns:
        The network, on the device, and its record: how it is built, its classes, and its mean and standard deviation.

    Raises:
        InputError: if the weights cannot be read or do not fit, or the names of the outputs do not match the classes.
    """
    torch.manual_seed(section.seed)
    model = experiment.build(section, pretrained=section.weights == "pretrained")
    record = experiment.describe(section)
    if section.weights is None:
        mean, std = experiment.statistics(section)
        return model, record | {"mean": mean, "std": std}
    mean, std = experiment.statistics(section, model)
    stored: list[str] | None = None  # the names of the outputs, in order
    if section.weights != "pretrained":
        path = weights_file(section.weights)
        origin = artefact.find(path.parent) if path.name in artefact.STATES else None
        if origin and section.mean is None:
            # The record of a finished stage has the statistics that its weights were trained with.
            mean, std = origin.record["mean"], origin.record["std"]
        if origin and section.has_classifier:
            check_fits(origin, experiment.data, any_order=True)
            stored = list(origin.record["classes"])
            load_into(model, read_weights(path), path)
            experiment.say(f"{name}  loaded from {section.weights}")
        else:
            load_foreign(experiment, name, section, model)
    else:
        experiment.say(f"{name}  starts from the pretrained weights of {section.model}")
        stored = zoo_classes(section.model, model)
        _report_preprocessing(experiment, name, section.model, model)
    if isinstance(section.classes, list):
        stored = section.classes
    if not section.has_classifier:
        stored = None
    if stored is not None and section.classes != "data" and len(stored) == len(experiment.data.classes):
        match_classes(experiment, name, section, model, (mean, std), stored)
    elif isinstance(section.classes, list):
        raise InputError(
            f"{name}.classes names {len(section.classes)} outputs, but the data has "
            f"{len(experiment.data.classes)} classes"
        )
    if tuple(mean) != tuple(experiment.data.mean):
        listed = ", ".join(f"{value:.3g}" for value in mean)
        experiment.say(f"{name}  its images are normalised with its own mean ({listed}) and standard deviation")
    return model, record | {"mean": mean, "std": std}


def load_foreign(experiment: Experiment, name: str, section: Training, module: nn.Module) -> None:
    """Load a weights file of this or another project, and print what was found in it.

    If the network will be trained, a classifier for another number of classes is initialised randomly. If a classifier
    is not used, it may be missing or for other classes.

    Args:
        experiment: the experiment.
        name: the name of the stage, for messages.
        section: the recipe's section of the stage.
        module: the module that the weights are loaded into.

    Raises:
        InputError: if the weights cannot be read, or do not fit.
    """
    assert section.weights is not None
    path = weights_file(section.weights)
    notes: list[str] = []
    state, report = adapt(read_foreign(path, section.weights_key, notes), module)
    if isinstance(section, Network) and not section.has_classifier:
        head = _unused_part(experiment, state, module)
        if head:
            report.append(f"{head} is not used")
    else:
        head = _other_head(state, module)
        if head and section.epochs is None:
            raise InputError(
                f"weights {path} do not fit {type(module).__name__}: the classifier, {head}, is for "
                f"{len(state[f'{head}.weight'])} classes, but the data has {len(experiment.data.classes)}. Set epochs "
                "to train the network with a new classifier"
            )
        if head:
            report.append(
                f"its classifier, {head}, is for {len(state[f'{head}.weight'])} classes; a new one for "
                f"{len(experiment.data.classes)} classes is initialised randomly"
            )
    if head:
        part = f"{head}."
        state = {key: value for key, value in state.items() if not key.startswith(part)}
        state |= {key: value for key, value in module.state_dict().items() if key.startswith(part)}
    load_into(module, state, path)
    for line in [f"loaded from {section.weights}", *notes, *report]:
        experiment.say(f"{name}  {line}")


def _unused_part(experiment: Experiment, state: State, model: nn.Module) -> str | None:
    """The path of the part of a teacher in which weights differ from it, if its features do not depend on that part."""
    expected = model.state_dict()
    absent = {key for key in expected if key not in state or state[key].shape != expected[key].shape}
    differing = [key.rpartition(".")[0].replace(".", "/") for key in absent | state.keys() - expected.keys()]
    path = commonpath(differing).replace("/", ".") if differing else ""
    return path if path and not _features_depend_on(experiment, model, path) else None


def _features_depend_on(experiment: Experiment, model: nn.Module, path: str) -> bool:
    """Whether a module of the teacher, if there is one at ``path``, is run before the last tap."""
    if path not in dict(model.named_modules()):
        return False
    runs: list[bool] = []
    images = experiment.normalize(experiment.statistics(experiment.recipe.teacher))(experiment.examples[:2])
    network = Taps(model, experiment.taps[0], logits=False)
    with eval_mode(network):
        network(images)  # the first pass may go on to the end, to find the patches of tokens
        hook = model.get_submodule(path).register_forward_hook(lambda *_: runs.append(True))
        network(images)
        hook.remove()
    return bool(runs)


def _other_head(state: State, module: nn.Module) -> str | None:
    """The path of the only layer that differs, if just its number of outputs differs; otherwise ``None``."""
    expected = module.state_dict()
    if state.keys() != expected.keys():
        return None
    different = [key for key in expected if state[key].shape != expected[key].shape]
    paths = {key.rpartition(".")[0] for key in different}
    fits = all(state[key].shape[1:] == expected[key].shape[1:] and state[key].dim() for key in different)
    (path, *others) = paths or {""}
    return path if path and not others and fits and f"{path}.weight" in different else None


def _report_preprocessing(experiment: Experiment, name: str, model: str, network: nn.Module) -> None:
    """Print which preprocessing of a zoo's weights is not reproduced here."""
    found, size = zoo_preprocessing(model, network), experiment.data.train.images.shape[-1]
    unusual = {key: found[key] for key in ("normalised", "scale") if key in found}
    if unusual or found.get("size", size) != size:
        listed = ", ".join(f"{key} {value}" for key, value in found.items())
        experiment.say(
            f"{name}  was trained with another preprocessing ({listed}); here only its mean and standard deviation are "
            f"used, and the images stay {size} pixels wide"
        )


def check_networks(experiment: Experiment) -> None:
    """Try both networks and load all weights that the recipe names, before anything is trained or replaced.

    The libraries of the recipe's loggers are looked for, too.

    Args:
        experiment: the experiment.

    Raises:
        InputError: if a network cannot be used, weights cannot be read or do not fit, or a library is missing.
    """
    check_loggers(experiment.recipe.log)
    _ = experiment.taps
    quiet = copy(experiment)
    quiet.display = Display(Console(quiet=True))
    recipe = experiment.recipe
    for name, section in (("teacher", recipe.teacher), ("student", recipe.student)):
        if section.weights is not None:
            init_network(quiet, name, section)
    if recipe.paraphraser and recipe.paraphraser.weights is not None:
        read_foreign(weights_file(recipe.paraphraser.weights), recipe.paraphraser.weights_key)
