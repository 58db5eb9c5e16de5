"""The tables of a recipe, as far as they are the same in every one."""

import dataclasses
from typing import Annotated, Literal

from annotated_types import Ge, Lt
from pydantic import Field, model_validator

from factor_transfer.settings import Options, options
from factor_transfer.training.checkpoint import CheckpointInterval
from factor_transfer.training.optim import Optimization


class Named(Options):
    """``[data]``: the data set's ``name``; beside it, its own settings and those of ``open_data``."""

    name: str


class Cache(Options):
    """``[cache]``: of stages 2 and 3.

    Attributes:
        views: crops and flips that each training image has; what the teacher says to them is worked out once, and kept
            in the work dir. If left out, every epoch draws new ones, and the teacher is asked each time.
        seed: the views are a function of it.
    """

    views: Annotated[int, Ge(1), Lt(1000)] | None = None
    seed: Annotated[int, Ge(0), Lt(2**63)] = 0


_Interval = options("every", CheckpointInterval)


class Checkpoint(Options):
    """``[checkpoint]``: of all stages.

    Attributes:
        every: when a training that runs is written down.
        requeue: whether Slurm is asked to start the job again, where SIGUSR1 has ended it.
    """

    every: _Interval = Field(default_factory=_Interval)  # type: ignore[valid-type]
    requeue: bool = False

    @property
    def interval(self) -> CheckpointInterval:
        """The interval as ``fit`` takes it."""
        return CheckpointInterval(**self.model_dump()["every"])


class Training(Options):
    """What each stage says of its training, beside the settings of ``Optimization``.

    Attributes:
        epochs: over the training images.
        batch_size: images a step.
        seed: of initial weights, order and augmentation.
        keep: the epoch that is ``"best"`` on the validation split, or the ``"last"``.
        weights: where it starts from: a file; ``"zoo:NAME"`` of `show zoo`; or ``"pretrained"``, for a network of timm,
            torchvision or transformers.
        weights_key: of a file that holds several weights, the name of those to take, such as ``"model_ema"``.
        accumulate: parts that each batch is divided into where memory is short; their gradients are summed up, so that
            only batch norm can tell.
    """

    epochs: Annotated[int, Ge(1)] | None = None
    batch_size: Annotated[int, Ge(1)] = 128
    seed: Annotated[int, Ge(0), Lt(2**63)] = 0
    keep: Literal["best", "last"] = "best"
    weights: str | None = None
    weights_key: str | None = None
    accumulate: Annotated[int, Ge(1)] = 1

    @property
    def optimization(self) -> Optimization:
        """The settings of the optimiser."""
        return Optimization(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Optimization)})

    @model_validator(mode="after")
    def _trained(self) -> "Training":
        if self.epochs is None and self.weights is None:
            raise ValueError("give epochs, to train it, or weights, the file of a trained one; both to train that on")
        return self

    @model_validator(mode="after")
    def _optimizes(self) -> "Training":
        _ = self.optimization  # refuses settings that do not go together
        return self


class Network(Training):
    """``[teacher]`` and ``[student]``.

    Attributes:
        model: a name, see ``factor-transfer show models``.
        args: the model's own settings.
        tap: the feature that is transferred, or several; the last stage's, if left out.
        mean: of each channel, 0..1, for this network's normalisation. If left out: for weights from elsewhere, what
            they were trained with, where that is known; else the data's.
        std: of each channel, 0..1; likewise.
        classes: the names of the outputs of ``weights``, in their order; they are permuted to the order of the data's
            classes. ``"data"`` says that they are in that order, whatever names are stored with them. If left out, the
            names that are stored with the weights, where there are any.
    """

    model: str
    args: Options = Field(default_factory=Options)
    tap: str | list[str] | None = None
    mean: list[float] | None = None
    std: list[Annotated[float, Field(gt=0)]] | None = None
    classes: list[str] | Literal["data"] | None = None

    @property
    def taps(self) -> list[str] | None:
        """The taps, of which there may be one."""
        return [self.tap] if isinstance(self.tap, str) else self.tap

    @model_validator(mode="after")
    def _tapped(self) -> "Network":
        if self.tap == []:
            raise ValueError("tap is empty; leave it out, and the last stage's is found")
        return self

    @model_validator(mode="after")
    def _normalizes(self) -> "Network":
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise ValueError("give both mean and std, a value a channel, or neither")
        return self


class Student(Network):
    """``[student]``: always trained."""

    @model_validator(mode="after")
    def _trained(self) -> "Student":
        if self.epochs is None:
            raise ValueError("epochs is missing: how long to train")
        return self
