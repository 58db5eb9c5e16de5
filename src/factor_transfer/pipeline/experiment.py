"""What a recipe stands for in a work dir: its images, device, networks and taps."""

from collections.abc import Collection, Iterator, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from lightning_fabric import Fabric
from rich.console import Console
from torch import Tensor, nn

from factor_transfer.config.recipe import Network, Recipe
from factor_transfer.data import Augment, Batch, Data, Split, Views, describe, in_order, open_data
from factor_transfer.data.sets.image_files import class_name
from factor_transfer.distributed import collectives
from factor_transfer.distributed.fabric import find_device, open_fabric
from factor_transfer.distributed.precision import fast_precision
from factor_transfer.errors import InputError, printable
from factor_transfer.models import Normalize, build_model, check_trusted, zoo_statistics
from factor_transfer.models.memory_format import to_memory_format
from factor_transfer.pipeline import artefact
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.pipeline.records import rebuild
from factor_transfer.pipeline.weights.trial import try_network
from factor_transfer.taps.stages import LAST_STAGE, resolve
from factor_transfer.training.evaluate import predict
from factor_transfer.training.log import Display

EVALUATION_BATCH = 500
KEPT_LOGITS = 2**30  # bytes: five networks' answers to the 50,000 validation images of ImageNet
EXAMPLES = 64  # images that networks are looked at with before they are trained

Statistics = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation of each channel, 0..1


class Experiment:
    """A recipe at work in a folder.

    Args:
        recipe: what to do.
        work_dir: where the stages lie.
        console: where progress is shown: a console, or a ``Display`` of one.
        command: the recipe and its overrides as on the command line, for messages.
        trusted_code: whose code may be run, ``package.module:callable``, for a recipe that was found in a folder. The
            recipe that a person gives, ``None``, is itself the permission for what it names.
    """

    def __init__(
        self,
        recipe: Recipe,
        work_dir: Path,
        console: Console | Display,
        command: str,
        trusted_code: Collection[str] | None = None,
    ) -> None:
        self.recipe, self.work_dir, self.command = recipe, work_dir, command
        self.display = console if isinstance(console, Display) else Display(console)
        self.trusted_code = trusted_code
        self.verified: set[Path] = set()  # folders whose sums were compared in this command
        self._said: set[str] = set()
        self._test_logits: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}

    def with_method(self, method: str, seed: int | None = None) -> Self:
        """The same experiment with another method, and another seed of the student.

        Images, device, taps and the test images' logits are the same objects in both.
        """
        _ = self.data, self.taps, self.views  # made now, so that the copy has them, too
        other = copy(self)
        other.recipe = self.recipe.with_method(method, seed)
        return other

    def say(self, text: str) -> None:
        """A line for the person."""
        self.display.say(printable(text, newlines=True))

    def say_first(self, text: str) -> None:
        """A line that a command says once, however often it comes to it."""
        if text not in self._said:
            self._said.add(text)
            self.display.say_once(printable(text, newlines=True))

    @property
    def console(self) -> Console:
        """The console that tables are printed on."""
        return self.display.console

    @cached_property
    def data(self) -> Data:
        """The images, read when first needed; a line says what was found.

        Raises:
            InputError: bad data, or a batch that is larger than the training set.
        """
        data = open_data(**self.recipe.data.model_dump())
        chosen = f", in {self.precision}" if self.recipe.precision == "auto" else ""
        self.display.say_once(data_line(data, self.fabric) + chosen)
        for name in ("teacher", "paraphraser", "student"):
            section = getattr(self.recipe, name)
            if section is not None and section.epochs is not None and section.batch_size > len(data.train):
                raise InputError(
                    f"{name}.batch_size is {section.batch_size}, larger than the training set of {len(data.train)} "
                    f"images; give a smaller one, such as {name}.batch_size={min(32, len(data.train))}"
                )
        return data

    @cached_property
    def fabric(self) -> Fabric:
        """Device and precision."""
        return open_fabric(self.recipe.device, self.precision)

    @cached_property
    def precision(self) -> str:
        """The precision of all trainings, ``"32-true"`` or ``"bf16-mixed"``; ``"auto"`` is settled here.

        A work dir keeps the precision that its first stage was trained in, so that it goes on alike on another machine.
        """
        if self.recipe.precision != "auto":
            return self.recipe.precision
        return artefact.trained_precision(self.work_dir) or fast_precision(find_device(self.recipe.device))

    @cached_property
    def augment(self) -> Augment:
        """What is done to the training images at random."""
        return Augment(**self.recipe.augment.model_dump())

    @cached_property
    def views(self) -> Views | None:
        """The fixed views of the training images, if the recipe has a factor cache."""
        cache = self.recipe.cache
        return Views(self.augment, len(self.data.train), cache.views, cache.seed) if cache.views else None

    @cached_property
    def test(self) -> Split:
        """The test images, for the final table alone."""
        return self.data.test()

    def build(self, section: Network, pretrained: bool = False) -> nn.Module:
        """A network as the recipe names it, on the device; with random weights, or the zoo's."""
        if self.trusted_code is not None:
            check_trusted(section.model, self.trusted_code, f"the recipe of {self.work_dir}")
        record = self.describe(section)["model"]
        return to_memory_format(self.fabric.to_device(build_model(**record, pretrained=pretrained)))

    def describe(self, section: Network) -> dict[str, Any]:
        """What a network's record says of it, so that ``load_network`` can build it again."""
        return {
            "model": {
                "name": section.model,
                "num_classes": len(self.data.classes),
                "in_channels": self.data.channels,
                **section.args.model_dump(mode="json"),
            },
            "classes": self.data.classes,
            "image": list(self.data.train.images.shape[1:]),
        }

    def statistics(self, section: Network, model: nn.Module | None = None) -> Statistics:
        """Mean and standard deviation of a network's input: as the recipe says, as its weights want it, or the data's.

        Args:
            section: of the recipe.
            model: if its weights come from elsewhere.

        Raises:
            InputError: not one for each channel.
        """
        if section.mean is not None and section.std is not None:
            found: Statistics | None = section.mean, section.std
        else:
            found = zoo_statistics(section.model, model, self.data.channels) if model is not None else None
        mean, std = found or (self.data.mean, self.data.std)
        if len(mean) != self.data.channels:
            raise InputError(
                f"{section.model} is normalised with {len(mean)} values ({', '.join(f'{m:.3g}' for m in mean)}), the "
                f"images have {self.data.channels} channels; give mean and std, one a channel"
            )
        return mean, std

    def normalize(self, statistics: Statistics | Artefact) -> Normalize:
        """What turns raw images into a network's input, by statistics or those of a finished network."""
        if isinstance(statistics, Artefact):
            statistics = statistics.record["mean"], statistics.record["std"]
        return Normalize(*statistics).to(self.fabric.device)

    def load(self, done: Artefact, last: bool = False) -> nn.Module:
        """The network of a finished stage, on the device; or as it was after the last epoch."""
        trusted = named_code(self.recipe, done) if self.trusted_code is None else self.trusted_code
        return to_memory_format(self.fabric.to_device(load_network(done, last, trusted)))

    @cached_property
    def examples(self) -> Tensor:
        """Some raw training images, from all over the set."""
        images = self.data.train.images
        chosen = torch.linspace(0, len(images) - 1, min(EXAMPLES, len(images))).long()
        return images[chosen].to(self.fabric.device)

    @cached_property
    def taps(self) -> tuple[list[str], list[str]]:
        """The taps of teacher and student; where the recipe names none, the last stage's, if there is one.

        Both networks are tried first, see ``try_network``.

        Raises:
            InputError: a network that cannot be used, or a tap that does not exist.
        """
        found = []
        for name, section in (("teacher", self.recipe.teacher), ("student", self.recipe.student)):
            # Drawn from a generator of its own: what is trained next must not depend on who looked for taps first.
            with torch.random.fork_rng(devices=[]):
                model = self.build(section)
            images = self.normalize(self.statistics(section))(self.examples[:2])
            try_network(section.model, model, images, len(self.data.classes))
            try:
                taps = [resolve(model, images, tap) for tap in section.taps or [LAST_STAGE]]
            except InputError:
                if section.taps is not None:
                    raise
                taps = []  # not every method needs one
            if taps and section.taps != taps:
                self.say(f"{name}  tap {', '.join(taps)}, found in {section.model}")
            found.append(taps)
        return found[0], found[1]

    def in_order(self, split: Split) -> Iterator[Batch]:
        """Each image of a split once, on the device: for evaluation."""
        return in_order(split, EVALUATION_BATCH, self.fabric.device, collectives.rank(), collectives.world())

    def logits(self, model: nn.Module, split: Split, normalize: Normalize) -> tuple[Tensor, Tensor]:
        """Logits (N, K) of a network over a split, and labels (N,), in full precision."""
        return predict(nn.Sequential(normalize, model), self.in_order(split))

    def test_logits(self, done: Artefact, last: bool = False) -> tuple[Tensor, Tensor]:
        """Logits (N, K) of a finished network over the test images, and labels (N,).

        They are worked out once in a command, and kept as far as they are small.

        Args:
            done: the network.
            last: whether it is taken as it was after its last epoch.
        """
        last = last and "last_sha256" in done.record
        key = done.fingerprint, str(done.record["last_sha256"]) if last else ""
        if key not in self._test_logits:
            found = self.logits(self.load(done, last), self.test, self.normalize(done))
            if sum(logits.nbytes for logits, _ in self._test_logits.values()) + found[0].nbytes > KEPT_LOGITS:
                return found
            self._test_logits[key] = found
        return self._test_logits[key]


def named_code(recipe: Recipe, done: Artefact) -> list[str]:
    """The code from outside that a person's own recipe allows to be run for a finished stage.

    It is what the recipe names in the stage's own place, with the same arguments: a teacher's name is no permission for
    a student, and ``torch.hub:load`` of one folder is none for that of another.
    """
    stage, model = str(done.record.get("stage", "")), dict(done.record.get("model") or {})
    section = recipe.student if stage.startswith("student") else recipe.teacher if stage == "teacher" else None
    for key in ("num_classes", "in_channels"):
        model.pop(key, None)
    if section is None or model != {"name": section.model, **section.args.model_dump(mode="json")}:
        return []
    return [section.model]


def data_line(data: Data, fabric: Fabric) -> str:
    """What a command that reads images says of them, and of the device that it uses them on."""
    device = fabric.device
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    several = f", {fabric.world_size} processes" if fabric.world_size > 1 else ""
    return f"data  {describe(data)}; on {device}{name}{several}"


def load_network(done: Artefact, last: bool = False, trusted_code: Collection[str] = ()) -> nn.Module:
    """The network of a finished stage, with its weights; or with those of the last epoch.

    Args:
        done: the stage.
        last: which weights.
        trusted_code: names, ``package.module:callable``, of code from outside that may be run. The record of a stage
            may come from anywhere: that it names somebody's own code is no reason to run it.

    Raises:
        InputError: the stage holds no network, or the weights do not fit; or it is one of code that was not asked for.
    """
    if "model" not in done.record:
        raise InputError(f"{done.weights} holds a {done.record.get('stage')}, not a network that classifies images")
    check_trusted(done.record["model"]["name"], trusted_code, done.weights)
    weights = done.folder / artefact.LAST if last and "last_sha256" in done.record else done.weights
    state = done.last_state() if last else done.state()
    return rebuild(done.record, state, done.folder / artefact.RECORD, weights)


def check_fits(done: Artefact, data: Data, any_order: bool = False) -> None:
    """Refuse a network that was made for other classes or channels than the data's.

    Args:
        done: the stage.
        data: the images.
        any_order: whether the same classes may be in another order.

    Raises:
        InputError: so it is, or its record is damaged.
    """
    if "model" not in done.record:
        raise InputError(f"{done.weights} holds a {done.record.get('stage')}, not a network that classifies images")
    classes, channels = tuple(done.record["classes"]), done.record["model"]["in_channels"]
    if channels != data.channels:
        raise InputError(f"{done.weights} takes images of {channels} channels, this recipe's have {data.channels}")
    own, wanted = [class_name(str(name)) for name in classes], [class_name(name) for name in data.classes]
    if (sorted(own) != sorted(wanted)) if any_order else own != wanted:
        here, there = (f"{len(names)} classes ({', '.join(names[:3])}, …)" for names in (classes, data.classes))
        raise InputError(f"{done.weights} tells {here} apart, this recipe's data has {there}")
