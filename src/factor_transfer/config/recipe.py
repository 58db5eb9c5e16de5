"""What a recipe may say: one TOML file an experiment.

Everything that a recipe is made of takes plain arguments; only what comes after this file sees a whole recipe.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge
from pydantic import Field, create_model, model_validator

from factor_transfer.config.sections import Cache, Checkpoint, Named, Network, Student, Training
from factor_transfer.data import DATASETS, Augment, open_data
from factor_transfer.errors import InputError, about, choose
from factor_transfer.methods import TERMS, Paraphraser, ParaphraserTraining
from factor_transfer.models import MODELS
from factor_transfer.settings import FreeOptions, Options, options
from factor_transfer.training.optim import Optimization

ALONE = "student"  # the method that is no term: the student alone

Precision = Literal["32-true", "bf16-mixed"]
AnyPrecision = Literal["auto", "32-true", "bf16-mixed"]


class Recipe(Options):
    """One experiment.

    Attributes:
        name: of the default work dir; the file's, if left out.
        preset: whose settings hold where the recipe says nothing, see ``factor-transfer show presets``.
        precision: ``"32-true"``; ``"bf16-mixed"``, bfloat16 where it is safe; or ``"auto"``, which takes bfloat16 where
            the device computes faster in it, and what the work dir's stages were trained in where there are any.
        teacher_precision: of the teacher where it is only looked at; that of ``precision``, if left out.
        compile: ``"on"`` compiles training steps, which rounds otherwise and changes nothing else; ``"auto"`` does so
            where a training is long enough for it to pay.
        device: ``"auto"`` takes a GPU where there is one.
        sync_batch_norm: of several processes, whether batch norm takes its statistics from all of them.
        on_nonfinite: ``"stop"`` where a loss is not finite; or ``"skip"`` steps whose gradient is not.
        max_skipped: so many of them in a stage.
        checkpoint: when a training that runs is written down.
        data: the images.
        augment: what is done to the training images at random.
        teacher: stage 1.
        paraphraser: stage 2; only factor transfer needs it.
        student: stage 3.
        cache: fixed views of the training images, and what the teacher says to them kept on disk.
        transfer: the terms of stage 3; ``[transfer.factor]`` has the settings of ``FactorTransfer``. Its ``method``
            says which are summed: ``"factor+kd"``; all that have a table, if left out; ``"student"`` is none.
    """

    name: Annotated[str, Field(pattern=r"^[^/\\.\x00-\x1f][^/\\\x00-\x1f]*$")]
    preset: str | None = None
    precision: AnyPrecision = "32-true"
    teacher_precision: Precision | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    sync_batch_norm: bool = False
    on_nonfinite: Literal["stop", "skip"] = "stop"
    max_skipped: Annotated[int, Ge(1)] = 10
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    data: Named
    augment: Options
    teacher: Network
    paraphraser: Training | None
    student: Student
    cache: Cache = Field(default_factory=Cache)
    transfer: Options

    @property
    def models(self) -> tuple[str, str]:
        """The names of the networks."""
        return self.teacher.model, self.student.model

    @property
    def method(self) -> str:
        """How the student is trained: its terms, joined by plus signs, or ``"student"``."""
        return "+".join(self.terms) or ALONE

    @property
    def terms(self) -> dict[str, Options]:
        """The settings of each term that is summed, by name."""
        tables: dict[str, Options | None] = {name: getattr(self.transfer, name) for name in TERMS}
        chosen = getattr(self.transfer, "method", None)
        if chosen is None:
            return {name: table for name, table in tables.items() if table is not None}
        return {name: tables[name] or _defaults(type(self.transfer), name) for name in parse_method(chosen)}

    @property
    def needs_paraphraser(self) -> bool:
        """Whether a term of the method needs a paraphraser."""
        return any(TERMS[name].needs_paraphraser for name in self.terms)

    def with_method(self, method: str, seed: int | None = None) -> "Recipe":
        """The same recipe for another method, and another seed of the student."""
        transfer = self.transfer.model_copy(update={"method": method})
        seeds = {} if seed is None else {"seed": seed}
        other = self.model_copy(update={"transfer": transfer, "student": self.student.model_copy(update=seeds)})
        other.check_paraphraser()
        return other

    def check_paraphraser(self) -> None:
        """Refuse a term that needs a paraphraser, where the recipe says nothing of one."""
        for name in self.terms:
            if TERMS[name].needs_paraphraser and self.paraphraser is None:
                with about("transfer", name):
                    raise InputError(f"the term {name} needs a paraphraser: say how to train it in [paraphraser]")

    @model_validator(mode="after")
    def _transfers(self) -> "Recipe":
        with about("transfer", "method"):
            terms = self.terms
        if not terms and getattr(self.transfer, "method", None) is None:
            with about("transfer"):
                raise InputError(
                    f"[transfer] is empty; name a term, such as [transfer.{next(iter(TERMS))}], or say "
                    f'method = "{ALONE}"'
                )
        self.check_paraphraser()
        return self


def needs_paraphraser(method: str) -> bool:
    """Whether a term of a method such as ``"factor+kd"`` needs a paraphraser."""
    return any(TERMS[name].needs_paraphraser for name in parse_method(method))


def parse_method(method: str) -> list[str]:
    """The terms of a method such as ``"factor+kd"``, in the order of ``TERMS``; ``"student"`` has none.

    Raises:
        InputError: an unknown term, or one that is named twice.
    """
    if method == ALONE:
        return []
    names = [choose("method", name.strip(), [*TERMS, ALONE]) for name in method.split("+")]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice or ALONE in names:
        raise InputError(f"method {method!r} names {twice[0] if twice else ALONE!r} {'twice' if twice else 'in a sum'}")
    return [name for name in TERMS if name in names]


def _defaults(transfer: type[Options], name: str) -> Options:
    """A term's settings where it has no table."""
    (kind,) = [part for part in transfer.model_fields[name].annotation.__args__ if part is not type(None)]  # type: ignore[union-attr]
    return kind()


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
        if model is not None and ":" in model:  # of a zoo, or one's own
            args: type[Options] = FreeOptions
        else:
            with about(table, "model"):
                builders = [MODELS[choose(f"{table}.model", model, MODELS)]] if model is not None else []
            args = options(f"{table}.args", *builders)
        kind = options(table, Optimization, base=base)
        return create_model(table, __base__=kind, args=(args, Field(default_factory=args)))

    data = named("data", "name")
    with about("data", "name"):
        openers = [DATASETS[choose("data set", data, DATASETS)]] if data is not None else []
    augment = options("augment", Augment)
    paraphraser = options("paraphraser", Paraphraser, ParaphraserTraining, Optimization, base=Training)
    terms: dict[str, Any] = {
        name: (options(name, term, term.between, term.adapt) | None, None) for name, term in TERMS.items()
    }
    fields: dict[str, Any] = {
        "data": (options("data", *openers, open_data, base=Named), ...),
        "augment": (augment, Field(default_factory=augment)),
        "teacher": (network("teacher", Network), ...),
        "paraphraser": (paraphraser | None, None),
        "student": (network("student", Student), ...),
        "transfer": (create_model("transfer", __base__=Options, method=(str | None, None), **terms), ...),
    }
    return create_model("Recipe", __base__=Recipe, **fields)
