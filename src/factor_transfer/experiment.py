"""What a recipe stands for in a work dir: its images, networks, taps, and the inputs each stage is made from."""

from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from rich.console import Console
from torch import Tensor, nn

from factor_transfer import artefact
from factor_transfer.artefact import Artefact
from factor_transfer.checkpoint import load_into, sha256
from factor_transfer.data import Batch, Data, Split, in_order, open_data
from factor_transfer.errors import InputError
from factor_transfer.evaluation import predict
from factor_transfer.methods import Paraphraser
from factor_transfer.models import Normalize, build_model
from factor_transfer.options import Options, settings
from factor_transfer.recipe import Network, Recipe
from factor_transfer.taps import feature_shape, last_stage

EVALUATION_BATCH = 500


class Experiment:
    """A recipe at work in a folder.

    Args:
        recipe: what to do.
        work_dir: where the stages lie.
        console: what a person sees.
        command: the recipe and its overrides as on the command line, for messages.

    Raises:
        InputError: the work dir belongs to another recipe.
    """

    def __init__(self, recipe: Recipe, work_dir: Path, console: Console, command: str) -> None:
        self.recipe, self.work_dir, self.console, self.command = recipe, work_dir, console, command
        artefact.claim(work_dir, recipe.name)

    def say(self, text: str) -> None:
        """A line for the person."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @cached_property
    def data(self) -> Data:
        """The images, read when first needed.

        Raises:
            InputError: bad data, or a batch that is larger than the training set.
        """
        data = open_data(**self.recipe.data.model_dump())
        for name in ("teacher", "paraphraser", "student"):
            section = getattr(self.recipe, name)
            if section.epochs is not None and section.batch_size > len(data.train):
                raise InputError(
                    f"{name}.batch_size is {section.batch_size}, larger than the training set of {len(data.train)} "
                    f"images; give a smaller one, such as {name}.batch_size={min(32, len(data.train))}"
                )
        return data

    @cached_property
    def fabric(self) -> Fabric:
        """Device and precision."""
        return open_fabric(self.recipe.device, self.recipe.precision)

    @cached_property
    def test(self) -> Split:
        """The test images, for the final table alone."""
        return self.data.test()

    def normalize(self, done: Artefact | None = None) -> Normalize:
        """What turns raw images into a network's input: by the statistics of a finished one, else by the data's."""
        mean, std = (done.record["mean"], done.record["std"]) if done else (self.data.mean, self.data.std)
        return Normalize(mean, std).to(self.fabric.device)

    def build(self, section: Network) -> nn.Module:
        """A network as the recipe names it, with random weights, on the device."""
        return self.fabric.to_device(build_model(**self.describe(section)["model"]))

    def describe(self, section: Network) -> dict[str, Any]:
        """What a network's record says of it, so that ``load_network`` can build it again."""
        model = {
            "name": section.model,
            "num_classes": len(self.data.classes),
            "in_channels": self.data.channels,
            **section.args.model_dump(mode="json"),
        }
        return {"model": model, "mean": self.data.mean, "std": self.data.std, "classes": self.data.classes}

    def load(self, done: Artefact) -> nn.Module:
        """The network of a finished stage, on the device."""
        return self.fabric.to_device(load_network(done))

    def load_paraphraser(self, done: Artefact) -> Paraphraser:
        """The paraphraser of a finished stage, on the device."""
        paraphraser = self.new_paraphraser(done.record["in_channels"])
        load_into(paraphraser, done.state(), done.weights)
        return paraphraser

    def new_paraphraser(self, in_channels: int) -> Paraphraser:
        """A paraphraser as the recipe describes it, with random weights, on the device."""
        chosen = {key: getattr(self.recipe.paraphraser, key) for key in settings(Paraphraser)}
        return Paraphraser(in_channels, **chosen).to(self.fabric.device)

    @cached_property
    def taps(self) -> tuple[str, str]:
        """The taps of teacher and student; where the recipe names none, the last stage's.

        Raises:
            InputError: a tap that does not exist, or two whose height and width differ.
        """
        found = []
        for name, section in (("teacher", self.recipe.teacher), ("student", self.recipe.student)):
            model, tap = self.build(section), section.tap
            if tap is None:
                tap = last_stage(model, self._example())
                self.say(f"{name}  tap {tap}, the last stage of {section.model}")
            found.append((tap, *self.feature_shape(model, tap)))
        (teacher_tap, *teacher), (student_tap, *student) = found
        if teacher[1:] != student[1:]:
            raise InputError(
                f"the teacher's {teacher_tap} is {teacher[0]} x {teacher[1]} x {teacher[2]}, the student's "
                f"{student_tap} {student[0]} x {student[1]} x {student[2]}; choose taps of the same height and width"
            )
        return teacher_tap, student_tap

    def feature_shape(self, model: nn.Module, tap: str) -> tuple[int, int, int]:
        """Channels, height and width of a network's feature at ``tap``, for this data's images."""
        return feature_shape(model, tap, self._example())

    def in_order(self, split: Split) -> Iterator[Batch]:
        """Each image of a split once, on the device: for evaluation."""
        return in_order(split, EVALUATION_BATCH, self.fabric.device)

    def logits(self, model: nn.Module, split: Split, normalize: Normalize) -> tuple[Tensor, Tensor]:
        """Logits (N, K) of a network over a split, and labels (N,), in full precision."""
        return predict(nn.Sequential(normalize, model), self.in_order(split))

    def teacher_inputs(self) -> dict[str, Any]:
        """What the teacher is made from."""
        section = self.recipe.teacher
        inputs = self._inputs(teacher=section, without={"tap", "weights"})
        if section.weights is not None:
            model = {"model": section.model, "args": section.args.model_dump(mode="json")}
            inputs["teacher"] = {**model, "weights": sha256(Path(section.weights).expanduser())}
        return inputs

    def paraphraser_inputs(self, teacher: Artefact) -> dict[str, Any]:
        """What the paraphraser is made from."""
        inputs = self._inputs(paraphraser=self.recipe.paraphraser)
        return {**inputs, "tap": self.taps[0], "teacher": teacher.fingerprint}

    def student_inputs(self, teacher: Artefact, paraphraser: Artefact) -> dict[str, Any]:
        """What the student is made from."""
        inputs = self._inputs(student=self.recipe.student, without={"tap"}, **self.recipe.terms)
        upstream = {"teacher": teacher.fingerprint, "paraphraser": paraphraser.fingerprint}
        return {**inputs, "taps": "→".join(self.taps), **upstream}

    def alone_inputs(self) -> dict[str, Any]:
        """What the student alone is made from."""
        return self._inputs(student=self.recipe.student, without={"tap"})

    def _inputs(self, without: Collection[str] = (), **sections: Options) -> dict[str, Any]:
        """What every training depends on, and some sections of the recipe."""
        return {
            "precision": self.recipe.precision,
            "data": self.data.fingerprint,
            "mean": list(self.data.mean),
            "std": list(self.data.std),
            "augment": self.recipe.augment.model_dump(mode="json"),
            **{name: section.model_dump(mode="json", exclude=set(without)) for name, section in sections.items()},
        }

    def _example(self) -> Tensor:
        """Two images as the networks take them."""
        return self.normalize()(self.data.train.images[:2].to(self.fabric.device))


def open_fabric(device: str, precision: Any) -> Fabric:
    """A device, by the recipe's name, and the precision of training on it.

    Raises:
        InputError: there is no such device here.
    """
    try:
        return Fabric(accelerator=device, devices=1, precision=precision)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"device {device!r} cannot be used here: {error}") from error


def load_network(done: Artefact) -> nn.Module:
    """The network of a finished stage, with its weights.

    Raises:
        InputError: the stage holds no network, or the weights do not fit.
    """
    if "model" not in done.record:
        raise InputError(f"{done.weights} holds a {done.record.get('stage')}, not a network that classifies images")
    try:
        model = build_model(**done.record["model"])
    except (TypeError, InputError) as error:
        raise InputError(f"{done.folder / artefact.RECORD} is damaged: {error}") from error
    load_into(model, done.state(), done.weights)
    return model


def check_fits(done: Artefact, data: Data) -> None:
    """Refuse a network that was made for other classes or channels than the data's.

    Raises:
        InputError: so it is, or its record is damaged.
    """
    try:
        classes, channels = tuple(done.record["classes"]), done.record["model"]["in_channels"]
        statistics = [len(done.record["mean"]), len(done.record["std"])]
    except (KeyError, TypeError) as error:
        raise InputError(f"{done.folder / artefact.RECORD} is damaged: {error}") from error
    if channels != data.channels or statistics != [channels, channels]:
        raise InputError(f"{done.weights} takes images of {channels} channels, this recipe's have {data.channels}")
    if classes != data.classes:
        here, there = (f"{len(names)} classes ({', '.join(names[:3])}, …)" for names in (classes, data.classes))
        raise InputError(f"{done.weights} tells {here} apart, this recipe's data has {there}")
