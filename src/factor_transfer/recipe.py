"""What a recipe may say: one TOML file an experiment.

Everything that a recipe is made of takes plain arguments; only ``stages`` and ``cli`` see a whole recipe.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge, Lt
from pydantic import Field, create_model, model_validator

from factor_transfer.data import DATASETS, Augment, open_data
from factor_transfer.errors import choose
from factor_transfer.methods import TERMS, Paraphraser
from factor_transfer.models import MODELS
from factor_transfer.optimization import Optimization
from factor_transfer.options import Options, options


class Named(Options):
    """``[data]``: the data set's ``name``; beside it, its own settings and those of ``open_data``."""

    name: str


class Training(Options):
    """What each stage says of its training, beside the settings of ``Optimization``.

    Attributes:
        epochs: over the training images.
        batch_size: images a step.
        seed: of initial weights, order and augmentation.
        keep: the epoch that is ``"best"`` on the validation split, or the ``"last"``.
    """

    epochs: Annotated[int, Ge(1)] | None = None
    batch_size: Annotated[int, Ge(1)] = 128
    seed: Annotated[int, Ge(0), Lt(2**63)] = 0
    keep: Literal["best", "last"] = "best"

    @property
    def optimization(self) -> Optimization:
        """The settings of the optimiser."""
        return Optimization(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Optimization)})

    @model_validator(mode="after")
    def _trained(self) -> "Training":
        if self.epochs is None:
            raise ValueError("epochs is missing: how long to train")
        return self

    @model_validator(mode="after")
    def _optimizes(self) -> "Training":
        _ = self.optimization  # refuses settings that do not go together
        return self


class Network(Training):
    """``[student]``, and most of ``[teacher]``.

    Attributes:
        model: a name, see ``factor-transfer show models``.
        args: the model's own settings.
        tap: the feature that is transferred; the last stage's, if left out.
    """

    model: str
    args: Options = Field(default_factory=Options)
    tap: str | None = None


class Teacher(Network):
    """``[teacher]``.

    Attributes:
        weights: a file of a trained teacher; it is then taken as it is, and ``epochs`` left out.
    """

    weights: str | None = None

    @model_validator(mode="after")
    def _trained(self) -> "Teacher":
        if (self.epochs is None) == (self.weights is None):
            raise ValueError("give either epochs, to train it, or weights, the file of a trained one")
        return self


class Recipe(Options):
    """One experiment.

    Attributes:
        name: of the default work dir; the file's, if left out.
        precision: ``"32-true"``, or ``"bf16-mixed"``: bfloat16 where it is safe.
        device: ``"auto"`` takes a GPU where there is one.
        data: the images.
        augment: what is done to the training images at random.
        teacher: stage 1.
        paraphraser: stage 2.
        student: stage 3.
        transfer: the terms of stage 3; ``[transfer.factor]`` has the settings of ``FactorTransfer``.
    """

    name: Annotated[str, Field(pattern=r"^[^/\\.][^/\\]*$")]
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    data: Named
    augment: Options
    teacher: Teacher
    paraphraser: Training
    student: Network
    transfer: Options

    @property
    def terms(self) -> dict[str, Options]:
        """The settings of each term of the transfer, by name."""
        return {name: term for name, term in self.transfer if term is not None}

    @model_validator(mode="after")
    def _transfers(self) -> "Recipe":
        if not self.terms:
            raise ValueError(f"[transfer] is empty; name a term: {', '.join(f'[transfer.{name}]' for name in TERMS)}")
        return self


def recipe_type(document: Mapping[str, Any]) -> type[Recipe]:
    """``Recipe``, with the settings of the data set, the models and the terms that ``document`` names.

    Raises:
        InputError: a data set, model or term that does not exist.
    """

    def named(table: str, key: str) -> str | None:
        value = document.get(table)
        name = value.get(key) if isinstance(value, Mapping) else None
        return name if isinstance(name, str) else None  # if it is wrong or missing, pydantic says so

    def network(table: str, base: type[Network]) -> type[Options]:
        model = named(table, "model")
        builders = [MODELS[choose(f"{table}.model", model, MODELS)]] if model is not None else []
        args = options(f"{table}.args", *builders)
        kind = options(table, Optimization, base=base)
        return create_model(table, __base__=kind, args=(args, Field(default_factory=args)))

    data = named("data", "name")
    openers = [DATASETS[choose("data set", data, DATASETS)]] if data is not None else []
    augment = options("augment", Augment)
    terms: dict[str, Any] = {name: (options(name, term) | None, None) for name, term in TERMS.items()}
    fields: dict[str, Any] = {
        "data": (options("data", *openers, open_data, base=Named), ...),
        "augment": (augment, Field(default_factory=augment)),
        "teacher": (network("teacher", Teacher), ...),
        "paraphraser": (options("paraphraser", Paraphraser, Optimization, base=Training), ...),
        "student": (network("student", Network), ...),
        "transfer": (create_model("transfer", __base__=Options, **terms), ...),
    }
    return create_model("Recipe", __base__=Recipe, **fields)
