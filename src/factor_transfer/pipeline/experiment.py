"""An experiment: a recipe in a work dir, with its images, device, networks and taps."""

import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from rich.console import Console
from torch import Tensor, nn

from factor_transfer.config.read import with_setting
from factor_transfer.config.recipe import Network, Recipe
from factor_transfer.data import (
    Augment,
    Batch,
    Batches,
    Data,
    Mixing,
    Mixture,
    Split,
    Views,
    describe,
    in_order,
    mix,
    open_data,
)
from factor_transfer.data.augment.strong import StrongAugment
from factor_transfer.data.sets.image_files import class_name
from factor_transfer.distributed import collectives
from factor_transfer.distributed.device import find_device
from factor_transfer.distributed.precision import fast_precision
from factor_transfer.errors import InputError, printable
from factor_transfer.methods import own_terms
from factor_transfer.models import Normalize, build_model, check_trusted, check_trusted_data, zoo_statistics
from factor_transfer.models.memory_format import to_memory_format
from factor_transfer.pipeline import artefact
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.pipeline.records import rebuild
from factor_transfer.pipeline.weights.trial import try_network
from factor_transfer.taps import Taps
from factor_transfer.taps.stages import LAST_STAGE, resolve
from factor_transfer.training.evaluate import predict
from factor_transfer.training.log import Display

if TYPE_CHECKING:
    from lightning_fabric import Fabric

EVALUATION_BATCH = 500
KEPT_LOGITS = 2**30  # bytes: the logits of five networks for the 50,000 validation images of ImageNet
EXAMPLES = 64  # the number of images that networks are tried with before training

Stage = Literal["teacher", "paraphraser", "student", "finetune"]
Statistics = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation of each channel, 0..1


def program() -> str:
    """How this program is called: ``factor-transfer``, or the script that adds terms of its own to it."""
    script = _script()
    return f"python {script}" if script is not None else "factor-transfer"


def program_call() -> list[str]:
    """The command that starts this program in another process, without its arguments.

    Raises:
        InputError: if this process has terms of its own, but no script that defines them.
    """
    script, own = _script(), own_terms()
    if script is not None:
        return [sys.executable, str(script.resolve())]
    if own:
        raise InputError(
            f"the term {own[0]!r} is defined outside this package, and no script defines it that a job could run"
        )
    return [sys.executable, "-P", "-m", "factor_transfer"]


def _script() -> Path | None:
    script = Path(sys.argv[0])
    return script if script.suffix == ".py" and own_terms() else None


class Experiment:
    """A recipe and the work dir that its stages are written to.

    Args:
        recipe: the recipe.
        work_dir: the folder that contains the stages.
        console: the console that progress is shown on, or a ``Display`` of one.
        command: the recipe and its overrides as on the command line, for messages.
        trusted_code: the code outside this package that may be run, as ``package.module:callable``, for a recipe that
            was found in a folder. ``None`` allows what the recipe names, as the user gave it.

    Attributes:
        threads_are_set: whether the number of threads was chosen for this whole process, so that no training measures
            which one is best.
        cache_threads: the number of threads that fill the factor cache on a CPU; ``None`` for PyTorch's number.
    """

    threads_are_set = False
    cache_threads: int | None = None

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
        self.verified: set[Path] = set()  # folders whose checksums were verified in this command
        self._test_logits: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}

    def with_method(self, method: str, seed: int | None = None) -> Self:
        """A copy of the experiment with another method, and optionally another seed of the student.

        Both share the images, the device, the taps and the logits of the test images.

        Args:
            method: the name of the method, such as ``"factor+kd"``; a setting may follow after a comma, as in the rows
                of a comparison: ``"factor,transfer.factor.beta=50"``.
            seed: the seed of the student; ``None`` for the recipe's.

        Raises:
            InputError: if the method or the setting is invalid.
        """
        _ = self.data, self.taps, self.views  # computed before copying, so that both share them
        other = copy(self)
        method, _, setting = method.partition(",")
        recipe = with_setting(self.recipe, setting) if setting else self.recipe.model_copy(update={"variant": None})
        other.recipe = recipe.with_method(method, seed)
        if setting.startswith("student."):
            del other.taps  # they depend on the student; a deleted cached property is computed again
            other._check_batch_sizes(self.data)
        return other

    def needs_paraphraser(self, methods: Iterable[str]) -> bool:
        """Whether one of several methods needs the paraphraser of stage 2; see ``with_method`` for their names."""
        return any(self.with_method(method).recipe.needs_paraphraser for method in methods)

    def say(self, text: str) -> None:
        """Print a message."""
        self.display.say(printable(text, newlines=True))

    def say_once(self, text: str) -> None:
        """Print a message that has not been printed in this command yet."""
        self.display.say_once(printable(text, newlines=True))

    @property
    def console(self) -> Console:
        """The console that tables are printed on."""
        return self.display.console

    @cached_property
    def data(self) -> Data:
        """The images. They are read when first needed, and a line that describes them is printed.

        Raises:
            InputError: if the data is invalid, or a batch is larger than the training set.
        """
        if self.trusted_code is not None:
            check_trusted_data(self.recipe.data.name, self.trusted_code, f"the recipe of {self.work_dir}")
        data = open_data(**self.recipe.data.arguments)
        chosen = f", in {self.precision}" if self.recipe.precision == "auto" else ""
        self.display.say_once(data_line(data, self.fabric) + chosen)
        self._check_batch_sizes(data)
        if data.unlabelled is None and self.recipe.student.unlabelled_share is not None:
            raise InputError(
                "student.unlabelled_share is given, but there are no images without labels; give data.unlabelled, "
                "their folder"
            )
        return data

    def _check_batch_sizes(self, data: Data) -> None:
        for name in ("teacher", "paraphraser", "student"):
            section = getattr(self.recipe, name)
            labelled_only = name == "teacher" or getattr(section, "finetune", None) is not None
            images = len(data.train if labelled_only else data.pool)
            if section is not None and section.epochs is not None and section.batch_size > images:
                raise InputError(
                    f"{name}.batch_size is {section.batch_size}, larger than the training set of {images} "
                    f"images; choose a smaller one, such as {name}.batch_size={min(32, images)}"
                )

    @property
    def mixture(self) -> Mixture | None:
        """The composition of the batches of a student whose method has terms; ``None`` if all images have labels.

        Raises:
            InputError: if the batch size does not suit the images.
        """
        section, unlabelled = self.recipe.student, self.data.unlabelled
        if unlabelled is None:
            return None
        return mix(len(self.data.train), len(unlabelled), section.batch_size, section.unlabelled_share)

    def batches(self, stage: Stage, has_terms: bool = True) -> Batches:
        """The batches that a stage is trained on: this process's part of each, on the device.

        The teacher is trained on labelled images. The paraphraser needs no labels, so it is trained on all images, and
        so is a student whose method has terms. A student alone is trained on labelled images, for as many steps.
        Fine-tuning uses labelled images, without fixed views.

        Args:
            stage: the stage.
            has_terms: for a student, whether its method has terms.

        Raises:
            InputError: if the batch size does not suit the images or the number of processes.
        """
        section = getattr(self.recipe, "student" if stage == "finetune" else stage)
        labelled_only = stage in ("teacher", "finetune")
        split = self.data.pool if not labelled_only and has_terms else self.data.train
        mixture = self.mixture if stage == "student" else None
        if mixture is not None and not has_terms:
            mixture = mixture.labelled_alone(section.accumulate * self.fabric.world_size)
        return Batches(
            split,
            section.batch_size,
            section.seed,
            self.augment,
            self.fabric.device,
            None if labelled_only else self.views,
            collectives.rank(),
            collectives.world(),
            mixture,
            self.mixing if stage in ("student", "finetune") else None,
        )

    @cached_property
    def fabric(self) -> "Fabric":
        """The device and the precision, as a ``Fabric``."""
        from factor_transfer.distributed.fabric import open_fabric  # not before it is needed: it takes a second

        return open_fabric(self.recipe.device, self.precision)

    @cached_property
    def precision(self) -> str:
        """The precision of all trainings, ``"32-true"`` or ``"bf16-mixed"``, to which ``"auto"`` is resolved.

        All stages of a work dir use the precision of the first, also when they are trained on another machine.
        """
        if self.recipe.precision != "auto":
            return self.recipe.precision
        return artefact.trained_precision(self.work_dir) or fast_precision(find_device(self.recipe.device))

    @cached_property
    def augment(self) -> Augment:
        """The random augmentation of the training images."""
        return Augment(**self.recipe.augment.model_dump())

    @property
    def mixing(self) -> Mixing | None:
        """The mixing of the student's images; ``None`` if they are not mixed."""
        augment = self.augment
        return Mixing(len(self.data.classes), augment.mixup, augment.cutmix) if self.recipe.mixing else None

    @cached_property
    def views(self) -> Views | None:
        """The fixed views of all images that a student learns from; ``None`` if the recipe has no factor cache."""
        cache = self.recipe.cache
        return Views(self.augment, len(self.data.pool), cache.views, cache.seed) if cache.views else None

    @cached_property
    def test(self) -> Split:
        """The test images, which are only used for the final results."""
        return self.data.test()

    def build(self, section: Network, pretrained: bool = False) -> nn.Module:
        """Build a network of the recipe on the device.

        Args:
            section: the recipe's section of the network.
            pretrained: whether to load the pretrained weights of a model zoo; the weights are random otherwise.

        Raises:
            InputError: if the network cannot be built, or is defined by code that is not trusted.
        """
        if self.trusted_code is not None:
            check_trusted(section.model, self.trusted_code, f"the recipe of {self.work_dir}")
        record = self.describe(section)["model"]
        return to_memory_format(self.fabric.to_device(build_model(**record, pretrained=pretrained)))

    def describe(self, section: Network) -> dict[str, Any]:
        """The part of a network's record from which ``load_network`` can build it again.

        Args:
            section: the recipe's section of the network.
        """
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
        """The mean and standard deviation of a network's input.

        The recipe's are used if it has any, then those that belong to pretrained weights, then those of the data.

        Args:
            section: the recipe's section of the network.
            model: the network with pretrained weights; ``None`` if its weights are random.

        Raises:
            InputError: if there is not one value per channel.
        """
        if section.mean is not None and section.std is not None:
            found: Statistics | None = section.mean, section.std
        else:
            found = zoo_statistics(section.model, model, self.data.channels) if model is not None else None
        mean, std = found or (self.data.mean, self.data.std)
        if len(mean) != self.data.channels:
            raise InputError(
                f"{section.model} has a mean of {len(mean)} values ({', '.join(f'{m:.3g}' for m in mean)}), but the "
                f"images have {self.data.channels} channels; set mean and std, one value per channel"
            )
        return mean, std

    def normalize(self, statistics: Statistics | Artefact) -> Normalize:
        """The module that turns raw images into a network's input.

        Args:
            statistics: the mean and standard deviation, or a finished network whose record has them.
        """
        if isinstance(statistics, Artefact):
            statistics = statistics.record["mean"], statistics.record["std"]
        return Normalize(*statistics).to(self.fabric.device)

    def student_input(self, normalize: Normalize) -> nn.Module:
        """The module that turns raw images into the student's input in training.

        Args:
            normalize: the module that does it elsewhere.
        """
        return nn.Sequential(StrongAugment(), normalize) if self.augment.student == "strong" else normalize

    def load(self, done: Artefact, last: bool = False) -> nn.Module:
        """Load the network of a finished stage onto the device.

        Args:
            done: the finished stage.
            last: whether to load the weights of the last epoch.

        Raises:
            InputError: see ``load_network``.
        """
        trusted = named_code(self.recipe, done) if self.trusted_code is None else self.trusted_code
        return to_memory_format(self.fabric.to_device(load_network(done, last, trusted)))

    @cached_property
    def examples(self) -> Tensor:
        """A few raw training images (B, C, H, W), spread evenly over the set, on the device."""
        images = self.data.train.images
        indices = torch.linspace(0, len(images) - 1, min(EXAMPLES, len(images))).long()
        return images[indices].to(self.fabric.device)

    @cached_property
    def taps(self) -> tuple[list[str], list[str]]:
        """The taps of the teacher and of the student. The default is the last stage of a network, if one is found.

        Both networks are tried first, see ``try_network``.

        Raises:
            InputError: if a network cannot be used, or a tap does not exist.
        """
        both = []
        for name, section in (("teacher", self.recipe.teacher), ("student", self.recipe.student)):
            # The generator is restored, so that later training does not depend on when the taps were determined.
            with torch.random.fork_rng(devices=[]):
                model = self.build(section)
            images = self.normalize(self.statistics(section))(self.examples[:2])
            try_network(section.model, model, images, len(self.data.classes) if section.has_classifier else None)
            try:
                taps = [resolve(model, images, tap) for tap in section.taps or [LAST_STAGE]]
                Taps(model, taps)  # checks that they exist
            except InputError as error:
                if section.taps is not None:
                    raise InputError(f"{name}.tap, of {section.model}: {error}") from error
                taps = []  # some methods need none
            if taps and section.taps != taps:
                self.say(f"{name}  tap {', '.join(taps)}, found in {section.model}")
            both.append(taps)
        return both[0], both[1]

    def in_order(self, split: Split) -> Iterator[Batch]:
        """The batches of a split for evaluation, on the device, which contain each image once."""
        return in_order(split, EVALUATION_BATCH, self.fabric.device, collectives.rank(), collectives.world())

    def logits(self, model: nn.Module, split: Split, normalize: Normalize) -> tuple[Tensor, Tensor]:
        """Compute the logits of a network for a split, in full precision.

        Args:
            model: the network: normalised images (B, C, H, W) -> logits (B, K).
            split: the images.
            normalize: the module that turns raw images into the network's input.

        Returns:
            The logits (N, K) and the labels (N,).
        """
        return predict(nn.Sequential(normalize, model), self.in_order(split))

    def test_logits(self, done: Artefact, last: bool = False) -> tuple[Tensor, Tensor]:
        """The logits of a finished network for the test images. They are cached unless they are too large.

        Args:
            done: the finished stage of the network.
            last: whether to use the weights of the last epoch.

        Returns:
            The logits (N, K) and the labels (N,).
        """
        last = last and "last_sha256" in done.record
        key = done.fingerprint, str(done.record["last_sha256"]) if last else ""
        if key not in self._test_logits:
            computed = self.logits(self.load(done, last), self.test, self.normalize(done))
            if sum(logits.nbytes for logits, _ in self._test_logits.values()) + computed[0].nbytes > KEPT_LOGITS:
                return computed
            self._test_logits[key] = computed
        return self._test_logits[key]

    def forget_logits(self) -> None:
        """Free the memory of the cached logits, here and in all copies of the experiment."""
        self._test_logits.clear()


def named_code(recipe: Recipe, done: Artefact) -> list[str]:
    """The code outside this package that a user's own recipe allows to run for a finished stage.

    It is the model that the recipe names for the same stage, with the same arguments: naming it for the teacher does
    not allow it for a student, and ``torch.hub:load`` from one folder does not allow it from another.

    Args:
        recipe: the recipe that the user gave.
        done: the finished stage.

    Returns:
        A list with the name of the allowed model, or an empty list.
    """
    stage, model = str(done.record.get("stage", "")), dict(done.record.get("model") or {})
    section = recipe.teacher if stage == "teacher" else None
    if stage.startswith(("student", "untuned")):
        section = recipe.student
    for key in ("num_classes", "in_channels"):
        model.pop(key, None)
    if section is None or model != {"name": section.model, **section.args.model_dump(mode="json")}:
        return []
    return [section.model]


def data_line(data: Data, fabric: "Fabric") -> str:
    """The line that a command prints about its images and its device."""
    device = fabric.device
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    several = f", {fabric.world_size} processes" if fabric.world_size > 1 else ""
    return f"data  {describe(data)}; on {device}{name}{several}"


def load_network(done: Artefact, last: bool = False, trusted_code: Collection[str] = ()) -> nn.Module:
    """Load the network of a finished stage.

    Args:
        done: the finished stage.
        last: whether to load the weights of the last epoch.
        trusted_code: the code outside this package that may be run, as ``package.module:callable``. The record of a
            stage may come from anyone, so code that it names is not run for that reason alone.

    Returns:
        The network, on the CPU.

    Raises:
        InputError: if the stage has no network, the weights do not fit, or the network is defined by code that is not
            trusted.
    """
    if "model" not in done.record:
        raise InputError(f"{done.weights} contains a {done.record.get('stage')}, not an image classifier")
    check_trusted(done.record["model"]["name"], trusted_code, done.weights)
    weights = done.folder / artefact.LAST if last and "last_sha256" in done.record else done.weights
    state = done.last_state() if last else done.state()
    return rebuild(done.record, state, done.folder / artefact.RECORD, weights)


def check_fits(done: Artefact, data: Data, any_order: bool = False) -> None:
    """Check that a finished network has the classes and channels of the data.

    Args:
        done: the finished stage of the network.
        data: the images.
        any_order: whether the classes may be in another order.

    Raises:
        InputError: if the classes or channels differ, or the stage has no network.
    """
    if "model" not in done.record:
        raise InputError(f"{done.weights} contains a {done.record.get('stage')}, not an image classifier")
    classes, channels = tuple(done.record["classes"]), done.record["model"]["in_channels"]
    if channels != data.channels:
        raise InputError(
            f"{done.weights} takes images of {channels} channels, but this recipe's images have {data.channels}"
        )
    trained, wanted = [class_name(str(name)) for name in classes], [class_name(name) for name in data.classes]
    if (sorted(trained) != sorted(wanted)) if any_order else trained != wanted:
        has, needs = (f"{len(names)} classes ({', '.join(names[:3])}, …)" for names in (classes, data.classes))
        raise InputError(f"{done.weights} was trained on {has}, but this recipe's data has {needs}")
