"""A checkpoint on the test split: what ``factor-transfer test`` does."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from factor_transfer import artefact
from factor_transfer.checkpoint import load_into, read_weights
from factor_transfer.data import Data, in_order, open_data
from factor_transfer.errors import InputError
from factor_transfer.evaluation import check_metrics, measure, predict
from factor_transfer.experiment import EVALUATION_BATCH, load_network, open_fabric
from factor_transfer.models import Normalize, build_model
from factor_transfer.recipe import Recipe


def score(recipe: Recipe, checkpoint: Path, metrics: Iterable[str]) -> dict[str, Any]:
    """Figures of a network on the recipe's test split.

    Args:
        recipe: its data, and for weights that do not lie in a stage's folder, its student or teacher.
        checkpoint: weights, or the folder of a stage.
        metrics: see ``evaluation.measure``.

    Returns:
        See ``evaluation.measure``.

    Raises:
        InputError: an unknown metric; a missing or damaged file; a network of other classes or layers.
    """
    metrics = check_metrics(metrics)
    path = checkpoint / artefact.WEIGHTS if checkpoint.is_dir() else checkpoint
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}; give a file of weights, or the folder of a finished stage")
    data = open_data(**recipe.data.model_dump())
    model, normalize = _network(recipe, data, path)
    fabric = open_fabric(recipe.device, recipe.precision)
    network = fabric.to_device(nn.Sequential(normalize, model))
    logits, labels = predict(network, in_order(data.test(), EVALUATION_BATCH, fabric.device))
    return measure(logits, labels, data.classes, metrics)


def _network(recipe: Recipe, data: Data, path: Path) -> tuple[nn.Module, Normalize]:
    """The network whose weights are in ``path``, and its normalisation."""
    done = artefact.find(path.parent) if path.name == artefact.WEIGHTS else None
    if done:
        model = load_network(done)
        if tuple(done.record["classes"]) != data.classes:
            raise InputError(
                f"{path} tells {_name(done.record['classes'])} apart, this recipe's data has {_name(data.classes)}"
            )
        return model, Normalize(done.record["mean"], done.record["std"])
    state = read_weights(path)
    # Weights from elsewhere do not say what they are: they are the teacher's if they have just its layers.
    shapes = {key: value.shape for key, value in state.items()}
    for section in (recipe.teacher, recipe.student):
        model = build_model(section.model, len(data.classes), data.channels, **section.args.model_dump())
        if shapes == {key: value.shape for key, value in model.state_dict().items()}:
            break
    load_into(model, state, path)
    return model, Normalize(data.mean, data.std)


def _name(classes: Sequence[str]) -> str:
    return f"{len(classes)} classes ({', '.join(classes[:3])}, …)"
