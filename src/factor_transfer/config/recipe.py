"""The schema of a recipe: one TOML file per experiment.

The packages that a recipe configures take plain arguments; only this package and those above it use whole recipes.
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge
from pydantic import Field, create_model, model_validator

from factor_transfer.config.sections import Cache, Checkpoint, Named, Network, Student, Training, Transfer
from factor_transfer.data import Augment, data_set, open_data
from factor_transfer.errors import InputError, about, choose
from factor_transfer.methods import (
    TERMS,
    Paraphraser,
    ParaphraserTraining,
    configured,
    own_terms,
    terms_of_features,
)
from factor_transfer.methods.distillation import LABEL_LOSSES
from factor_transfer.models import MODELS
from factor_transfer.settings import FreeOptions, Options, options, table_type
from factor_transfer.training.loggers.epoch_loggers import LoggerName
from factor_transfer.training.optim import Optimization

ALONE = "student"  # the method without terms: the student is trained alone

Precision = Literal["32-true", "bf16-mixed"]
AnyPrecision = Literal["auto", "32-true", "bf16-mixed"]


class Recipe(Options):
    """The settings of one experiment.

    Attributes:
        name: the name of the default work dir; defaults to the name of the file.
        variant: a word that is added to the name of the student's folder, so that students of one method with different
            settings lie side by side in a work dir. ``compare`` gives one to each value of a setting with several.
        preset: the preset whose settings apply where the recipe has none, see ``factor-transfer show presets``.
        precision: the precision of all trainings: ``"32-true"``; ``"bf16-mixed"``, bfloat16 where it is safe; or
            ``"auto"``, the precision of the stages in the work dir, or else bfloat16 if the device is faster in it.
        teacher_precision: the precision of the frozen teacher; defaults to ``precision``.
        threads: the number of threads of a single training on a CPU. ``"auto"`` measures a few steps with all of them
            and with fewer, and keeps the fastest number. The processes of a comparison have one thread each.
        compile: whether to compile the training steps, which changes nothing but rounding. ``"auto"`` compiles them if
            the training is long enough to gain from it.
        device: the device: ``"cpu"``, ``"cuda"`` or ``"mps"``; ``"auto"`` chooses a GPU if there is one.
        sync_batch_norm: whether batch norm computes its statistics over all processes.
        on_nonfinite: ``"stop"`` ends a training whose loss is not finite; ``"skip"`` skips steps whose gradient is not
            finite.
        max_skipped: the largest number of steps that are skipped in a stage.
        log: the loggers that the figures of each epoch are given to beside ``metrics.jsonl``: ``"tensorboard"`` and
            ``"csv"``, which write files into the stage's folder, ``"wandb"`` (Weights & Biases) and ``"mlflow"``.
        checkpoint: when checkpoints of a running training are written.
        data: the images.
        augment: the random augmentation of the training images.
        teacher: the settings of stage 1.
        paraphraser: the settings of stage 2, which only factor transfer needs.
        student: the settings of stage 3.
        cache: the fixed views of the training images for which the teacher's outputs are cached on disk.
        transfer: the terms of stage 3, one table each: ``[transfer.factor]`` has the settings of ``FactorTransfer``.
    """

    name: Annotated[str, Field(pattern=r"^[^/\\.\x00-\x1f][^/\\\x00-\x1f]*$")]
    variant: Annotated[str, Field(pattern=r"^[^/\\\x00-\x1f]+$")] | None = None
    preset: str | None = None
    precision: AnyPrecision = "auto"
    teacher_precision: Precision | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: Literal["auto"] | Annotated[int, Ge(1)] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    sync_batch_norm: bool = False
    on_nonfinite: Literal["stop", "skip"] = "stop"
    max_skipped: Annotated[int, Ge(1)] = 10
    log: list[LoggerName] = Field(default_factory=list)
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    data: Named
    augment: Options
    teacher: Network
    paraphraser: Training | None
    student: Student
    cache: Cache = Field(default_factory=Cache)
    transfer: Transfer

    @property
    def models(self) -> tuple[str, str]:
        """The names of the teacher's and the student's models."""
        return self.teacher.model, self.student.model

    @property
    def method(self) -> str:
        """The method that trains the student: its terms joined by plus signs, or ``"student"`` if there are none."""
        return "+".join(self.terms) or ALONE

    @property
    def row(self) -> str:
        """The name of the student's row in a comparison: the method, with the variant after a comma if there is one."""
        return self.method if self.variant is None else f"{self.method},{self.variant}"

    @property
    def terms(self) -> dict[str, Options]:
        """The settings of each term of the method, by name."""
        tables: dict[str, Options | None] = {name: getattr(self.transfer, name) for name in TERMS}
        if self.transfer.method is None:
            return {name: table for name, table in tables.items() if table is not None}
        named = parse_method(self.transfer.method)
        return {name: tables[name] or _defaults(type(self.transfer), name) for name in named}

    @property
    def needs_paraphraser(self) -> bool:
        """Whether a term of the method needs a paraphraser."""
        return any(self._paraphrases(name) for name in self.terms)

    def _paraphrases(self, name: str) -> bool:
        return TERMS[name].needs_paraphraser(self.terms[name].model_dump())

    def with_method(self, method: str, seed: int | None = None) -> "Recipe":
        """A copy of the recipe with another method, and optionally another seed of the student.

        Args:
            method: the method, such as ``"factor+kd"``. ``"student"`` learns from labels even if ``student.labels`` is
                ``"none"``.
            seed: the seed of the student; ``None`` for this recipe's.

        Raises:
            InputError: if the method does not exist, or needs a paraphraser that the recipe does not have.
        """
        transfer = self.transfer.model_copy(update={"method": method})
        changes: dict[str, Any] = {} if seed is None else {"seed": seed}
        if method == ALONE:
            changes["labels"] = "all"  # it has nothing else to learn from
        other = self.model_copy(update={"transfer": transfer, "student": self.student.model_copy(update=changes)})
        other.check_terms()
        return other

    def check_terms(self) -> None:
        """Check that the recipe has what its terms need: a paraphraser, a classifier of the teacher, labels.

        Raises:
            InputError: if something is missing.
        """
        if not self.terms and self.student.labels == "none":
            with about("student", "labels"):
                raise InputError(f'the method "{ALONE}" has no terms, so it needs labels')
        for name in self.terms:
            if TERMS[name].needs_classifier and not self.teacher.has_classifier:
                with about("teacher", "classes"):
                    usable = ", ".join(terms_of_features())
                    raise InputError(f"the term {name} needs a teacher with a classifier; these do not: {usable}")
            if TERMS[name].needs_labels and self.student.labels == "none":
                with about("student", "labels"):
                    raise InputError(f"the term {name} needs labels")
            if TERMS[name].needs_labels and self.mixing:
                with about("augment", self.mixing[0]):
                    raise InputError(f"the term {name} needs the class of each image, and mixed images have several")
            if self.paraphraser is None and self._paraphrases(name):
                with about("transfer", name):
                    raise InputError(f"the term {name} needs a paraphraser; describe its training in [paraphraser]")

    @property
    def warnings(self) -> list[str]:
        """The warnings about settings that are valid and have no effect, or less than they seem to have."""
        found = []
        for name in ("teacher", "paraphraser", "student"):
            section = getattr(self, name)
            if section is None or section.epochs is None:
                continue
            late = [milestone for milestone in section.milestones if milestone >= section.epochs]
            if section.milestones and section.schedule != "step":
                found.append(f'{name}.milestones has no effect with schedule = "{section.schedule}"')
            elif late:
                found.append(
                    f"{name}.milestones has {', '.join(map(str, late))}, which {name}.epochs = {section.epochs} does "
                    "not reach; the learning rate does not fall there"
                )
            if section.warmup_epochs >= section.epochs:
                found.append(
                    f"{name}.warmup_epochs = {section.warmup_epochs:g} is the whole training of {section.epochs} epochs"
                )
        epochs = self.student.epochs
        for name, settings in self.terms.items():
            warmup = getattr(settings, "warmup_epochs", 0)
            if epochs is not None and warmup > epochs:
                found.append(
                    f"the weight of {name} rises over {warmup:g} epochs (transfer.{name}.warmup_epochs), but the "
                    f"student is trained for {epochs}; it reaches at most {epochs / warmup:.0%} of its full size"
                )
        return found

    @property
    def mixing(self) -> list[str]:
        """The settings of ``[augment]`` by which images are mixed: ``"mixup"`` and ``"cutmix"``."""
        return [name for name in ("mixup", "cutmix") if getattr(self.augment, name, None) is not None]

    @model_validator(mode="after")
    def _mixes(self) -> "Recipe":
        for name in self.mixing:
            with about("augment", name):
                if self.cache.views is not None:
                    raise InputError("the teacher's outputs for mixed images cannot be cached; leave out [cache] views")
                if any(getattr(self.data, key, None) is not None for key in ("unlabelled", "labelled")):
                    raise InputError("an image without a label cannot be mixed with another; leave it out")
        return self

    @model_validator(mode="after")
    def _transfers(self) -> "Recipe":
        with about("transfer", "method"):
            terms = self.terms
        if not terms and self.transfer.method is None:
            with about("transfer"):
                raise InputError(
                    f"[transfer] is empty; name a term, such as [transfer.{next(iter(TERMS))}], or set "
                    f'method = "{ALONE}"'
                )
        self.check_terms()
        return self


def parse_method(method: str) -> list[str]:
    """The terms of a method such as ``"factor+kd"``, in the order of ``TERMS``; ``"student"`` has none.

    Args:
        method: the names of the terms, joined by plus signs.

    Raises:
        InputError: if a term does not exist or is named twice, or ``"student"`` is combined with a term.

    Example:
        >>> from factor_transfer.config.recipe import parse_method
        >>> parse_method("kd + factor")
        ['factor', 'kd']
    """
    if method == ALONE:
        return []
    names = [choose("method", name.strip(), [*TERMS, ALONE]) for name in method.split("+")]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise InputError(f"method {method!r} names {repeated[0]!r} twice")
    if ALONE in names:
        raise InputError(f"method {method!r} combines {ALONE!r} with other terms; {ALONE!r} stands for no terms")
    return [name for name in TERMS if name in names]


def _defaults(transfer: type[Transfer], name: str) -> Options:
    """The default settings of a term that has no table."""
    kind = table_type(transfer.model_fields[name].annotation)
    assert kind is not None
    assert issubclass(kind, Options)
    return kind()


def recipe_type(document: Mapping[str, Any]) -> type[Recipe]:
    """A subclass of ``Recipe`` with the settings of the data set, models and terms that a document names.

    Args:
        document: the parsed TOML document.

    Raises:
        InputError: if a data set or model does not exist.
    """

    def named(table: str, key: str) -> str | None:
        value = document.get(table)
        name = value.get(key) if isinstance(value, Mapping) else None
        return name if isinstance(name, str) else None  # pydantic reports a missing or invalid name

    def network(table: str, base: type[Network]) -> type[Options]:
        model = named(table, "model")
        if model is not None and ":" in model:  # from a model zoo, or defined by the user
            args: type[Options] = FreeOptions
        else:
            with about(table, "model"):
                builders = [MODELS[choose(f"{table}.model", model, MODELS)]] if model is not None else []
            args = options(f"{table}.args", *builders)
        kind = options(table, Optimization, base=base)
        return create_model(table, __base__=kind, args=(args, Field(default_factory=args)))

    for name in own_terms():
        if not re.fullmatch("[a-z][a-z0-9_]*", name) or name in (ALONE, *Transfer.model_fields, *LABEL_LOSSES):
            raise InputError(
                f"a term of your own cannot be named {name!r}: a name has small letters, digits and underscores, and "
                "is neither a setting of [transfer] nor a word for labels"
            )
    data = named("data", "name")
    with about("data", "name"):
        openers = [data_set(data)] if data is not None else []
    augment = options("augment", Augment)
    paraphraser = options("paraphraser", Paraphraser, ParaphraserTraining, Optimization, base=Training)
    terms: dict[str, Any] = {name: (options(name, *configured(term)) | None, None) for name, term in TERMS.items()}
    fields: dict[str, Any] = {
        "data": (options("data", *openers, open_data, base=Named), ...),
        "augment": (augment, Field(default_factory=augment)),
        "teacher": (network("teacher", Network), ...),
        "paraphraser": (paraphraser | None, None),
        "student": (network("student", Student), ...),
        "transfer": (create_model("transfer", __base__=Transfer, **terms), ...),
    }
    return create_model("Recipe", __base__=Recipe, **fields)
