"""The tables that all recipes share."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt
from pydantic import Field, model_validator

from factor_transfer.data import check_range
from factor_transfer.methods.schedule import Schedule
from factor_transfer.settings import Options, options
from factor_transfer.training.checkpoint import CheckpointInterval
from factor_transfer.training.optim import Optimization


class Named(Options):
    """``[data]``: the data set, with the settings of that data set and those of ``open_data``.

    Attributes:
        name: the name of the data set.
        title: the name of the images in a model card; defaults to the name of their folder for ``"folder"`` and
            ``"webdataset"``, and to ``name`` otherwise.
    """

    name: str
    title: Annotated[str, Field(min_length=1)] | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of ``open_data``."""
        return self.model_dump(exclude={"title"})

    @property
    def display_name(self) -> str:
        """The name of the images for people: the ``title``, or its default."""
        if self.title is None and self.name in ("folder", "webdataset"):
            return Path(str(self.arguments["root"])).resolve().name or self.name
        return self.title or self.name


class Cache(Options):
    """``[cache]``: the factor cache of stages 2 and 3.

    Attributes:
        views: the number of fixed views (crops and flips) of each training image. The teacher's outputs for them are
            computed once and stored in the work dir. By default there are new views in every epoch, and the teacher is
            run in every step.
        seed: the seed of the views.
    """

    views: Annotated[int, Ge(1), Lt(1000)] | None = None
    seed: Annotated[int, Ge(0), Lt(2**63)] = 0


_Interval = options("every", CheckpointInterval)


class Checkpoint(Options):
    """``[checkpoint]``: the checkpoints of all stages.

    Attributes:
        every: the interval between checkpoints of a running training.
        requeue: whether to requeue the job in Slurm after SIGUSR1 has ended it.
    """

    every: _Interval = Field(default_factory=_Interval)  # type: ignore[valid-type]
    requeue: bool = False

    @property
    def interval(self) -> CheckpointInterval:
        """The interval between checkpoints, as an argument of ``fit``."""
        return CheckpointInterval(**self.model_dump()["every"])


class Training(Options):
    """The settings of a stage's training, besides those of ``Optimization``.

    Attributes:
        epochs: the number of passes over the training images.
        batch_size: the number of images per step, over all processes.
        seed: the seed of initial weights, order and augmentation.
        keep: which epoch's weights are delivered: the ``"best"`` on the validation split, or the ``"last"``.
        weights: the initial weights: a file; ``"zoo:NAME"``, see ``factor-transfer show zoo``; or ``"pretrained"``, for
            a network of timm, torchvision or transformers.
        weights_key: the name of the weights to take from a file that has several, such as ``"model_ema"``.
        accumulate: the number of parts that each batch is divided into where memory is short. Their gradients are
            summed, so that only the statistics of batch norm differ.
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
            raise ValueError(
                "give epochs, to train it, or weights, to take a trained one; or both, to train that further"
            )
        return self

    @model_validator(mode="after")
    def _optimizes(self) -> "Training":
        _ = self.optimization  # refuses settings that do not go together
        return self


class Network(Training):
    """``[teacher]`` and ``[student]``: the settings of a network.

    Attributes:
        model: the name of the model, see ``factor-transfer show models``.
        args: the settings of the model.
        tap: the path of the module whose output is transferred, or several paths; defaults to the last stage.
        mean: the mean of each channel, in 0..1, that normalises the network's input. It defaults to the one that the
            given weights were trained with, if that is known, and otherwise to the data's.
        std: the standard deviation of each channel, in 0..1, with the same defaults as ``mean``.
        classes: the names of the outputs of ``weights``, in order; the outputs are permuted to the order of the data's
            classes. ``"data"`` declares that they are in that order already. ``"none"``, for a teacher, declares that
            the outputs are not classes: only its features are used. It defaults to the names stored with the weights,
            if there are any.
        label_smoothing: the probability that the labels divide equally among all classes, in 0..1. A teacher that is
            trained with it tells a student less about similar classes (Müller, Kornblith, Hinton, NeurIPS 2019).
        ema_decay: the decay of a moving average of the weights, such as 0.999. The average is what is validated and
            delivered in place of the weights.
    """

    model: str
    args: Options = Field(default_factory=Options)
    tap: str | list[str] | None = None
    mean: list[float] | None = None
    std: list[Annotated[float, Field(gt=0)]] | None = None
    classes: list[str] | Literal["data", "none"] | None = None
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0
    ema_decay: Annotated[float, Gt(0), Lt(1)] | None = None

    @property
    def taps(self) -> list[str] | None:
        """The taps as a list; ``None`` for the default."""
        return [self.tap] if isinstance(self.tap, str) else self.tap

    @property
    def has_classifier(self) -> bool:
        """Whether the outputs are the classes of the data."""
        return self.classes != "none"

    @model_validator(mode="after")
    def _classifies(self) -> "Network":
        if not self.has_classifier and (self.epochs is not None or self.weights is None):
            raise ValueError('with classes = "none", give the weights of a trained network, and leave out epochs')
        return self

    @model_validator(mode="after")
    def _tapped(self) -> "Network":
        if self.tap == []:
            raise ValueError("tap is empty; name a tap, or omit it to use the network's last stage")
        return self

    @model_validator(mode="after")
    def _normalizes(self) -> "Network":
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise ValueError("give both mean and std, with one value per channel, or neither")
        check_range(self.mean, self.std)
        return self


class Finetune(Options):
    """``[student.finetune]``: the training of a distilled student on labels alone, after ``[student]``.

    Attributes:
        epochs: the number of passes over the labelled images.
        learning_rate: the learning rate at the start, which is annealed to zero along half a cosine; it defaults to a
            tenth of ``student.learning_rate``.
    """

    epochs: Annotated[int, Ge(1)]
    learning_rate: Annotated[float, Gt(0)] | None = None


class Student(Network):
    """``[student]``: the settings of the student, which is always trained.

    Attributes:
        unlabelled_share: the share of images without labels in each batch, between 0 and 1, if there are such images;
            see ``data.unlabelled``. By default all images are used about equally often, but at least 8 images of a
            batch have labels.
        labels: which labels the student learns from beside its terms: ``"all"`` there are, or ``"none"``.
        finetune: the settings of a fine-tuning on labels after the distillation; there is none if left out. A student
            without a teacher is fine-tuned, too.
    """

    unlabelled_share: Annotated[float, Gt(0), Lt(1)] | None = None
    labels: Literal["all", "none"] = "all"
    finetune: Finetune | None = None

    @model_validator(mode="after")
    def _trained(self) -> "Student":
        if self.epochs is None:
            raise ValueError("epochs is missing, the number of epochs to train the student for")
        return self


class Transfer(Options):
    """``[transfer]``: what the student learns from the teacher. It also has a table for the settings of each term.

    Attributes:
        method: the terms that are added to the student's loss, such as ``"factor+kd"``, or ``"student"`` for none; it
            defaults to all terms that have a table.
        schedule: how the weights of all terms change during the training: ``"constant"``; ``"linear"``, falling to
            zero; or ``"cosine"``, falling to zero along half a cosine.
    """

    method: str | None = None
    schedule: Schedule = "constant"
