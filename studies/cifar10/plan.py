"""What the study trains: pairs of networks, and what is changed of them, one thing at a time."""

from dataclasses import dataclass
from pathlib import Path

from factor_transfer.config.presets import PRESETS

HERE = Path(__file__).parent
METHODS = ("student", "kd", "fitnets", "at", "factor", "factor+kd", "at+kd")


@dataclass(frozen=True)
class Variant:
    """Factor transfer otherwise than the pair's recipe says; looked at on validation images alone.

    Attributes:
        group: what is varied, such as ``"k"``.
        name: the value, such as ``"k=0.25"``; a folder's name.
        changes: of the recipe, ``KEY=VALUE``.
        own_paraphraser: whether it needs another paraphraser than the pair's recipe.
    """

    group: str
    name: str
    changes: tuple[str, ...]
    own_paraphraser: bool = False

    @property
    def own_targets(self) -> bool:
        """Whether the teacher's factors are others than by the pair's recipe."""
        return self.own_paraphraser or "transfer.factor.paraphrase=false" in self.changes

    @property
    def own_taps(self) -> bool:
        """Whether the teacher's features are."""
        return any(change.startswith("teacher.tap=") for change in self.changes)


@dataclass(frozen=True)
class Pair:
    """A teacher, a student and all that is tried with them.

    Attributes:
        name: a folder's name.
        recipe: a file, or the name of one that comes with the package.
        changes: of the recipe, for everything.
        methods: compared with each other, on the test images.
        seeds: how many, of the methods.
        variant_seeds: how many, of the variants; the first of them.
        variants: compared with the recipe's ``factor``, on the validation images.
        chosen: methods that the best variant on the validation images is tested with.
    """

    name: str
    recipe: str
    changes: tuple[str, ...] = ()
    methods: tuple[str, ...] = METHODS
    seeds: int = 3
    variant_seeds: int = 3
    variants: tuple[Variant, ...] = ()
    chosen: tuple[str, ...] = ("factor", "factor+kd")


def _of(group: str, keys: str, *values: object, own: bool = False) -> tuple[Variant, ...]:
    """Variants of one setting; ``keys`` may be several, which get the same value."""
    return tuple(
        Variant(group, f"{group}={value}", tuple(f"{key}={value}" for key in keys.split()), own) for value in values
    )


def _implementations() -> tuple[Variant, ...]:
    """Connectors and factor term as others have them; the student's own schedule stays, so that it is these alone."""
    variants = []
    for name in ("torchdistill", "repdistiller", "mmrazor"):
        preset = PRESETS[name]
        changes = [f"paraphraser.{key}={value}" for key, value in preset["paraphraser"].items()]
        changes += [f"transfer.factor.{key}={_toml(value)}" for key, value in preset["transfer"]["factor"].items()]
        changes += [
            f"{side}.tap={preset[side]['tap']}" for side in ("teacher", "student") if "tap" in preset.get(side, {})
        ]
        variants.append(Variant("implementation", name, tuple(changes), True))
    return tuple(variants)


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


_BOTH_LAYERS = '["layer2","layer3"]'
_BOTH_TAPS = (f"teacher.tap={_BOTH_LAYERS}", f"student.tap={_BOTH_LAYERS}")

_SMALL_VARIANTS = (
    *_of("beta", "transfer.factor.beta", 50, 5000),
    *_of("k", "paraphraser.rate", 0.25, 1.0, own=True),
    # Once beta = 5000 was seen to be best of these: does more of it help, and what goes with it?
    *_of("beta", "transfer.factor.beta", 15000),
    Variant("search", "beta=5000,tap=layer2+layer3", ("transfer.factor.beta=5000", *_BOTH_TAPS), True),
    Variant(
        "search", "beta=5000,translator=batch_norm", ("transfer.factor.beta=5000", "transfer.factor.batch_norm=true")
    ),
)

_FULL_VARIANTS = (
    *_of("beta", "transfer.factor.beta", 50, 150, 1500, 5000),
    *_of("k", "paraphraser.rate", 0.25, 0.75, 1.0, own=True),
    *_of("tap", "teacher.tap student.tap", "layer2", own=True),
    Variant("tap", "tap=layer2+layer3", _BOTH_TAPS, True),
    Variant("batch norm", "translator", ("transfer.factor.batch_norm=true",)),
    Variant("batch norm", "both", ("transfer.factor.batch_norm=true", "paraphraser.batch_norm=true"), True),
    *_of("reconstruction", "paraphraser.reconstruction", "l2", own=True),
    # Trained, but by steps so small that float32 does not see them.
    Variant("paraphraser", "untrained", ("paraphraser.epochs=1", "paraphraser.learning_rate=1e-30"), True),
    Variant("paraphraser", "none", ("transfer.factor.paraphrase=false",)),
    *_of("p", "transfer.factor.p", 2),
    *_implementations(),
)

_GPU = ("precision=bf16-mixed",)  # bfloat16 where it is safe
_MMRAZOR = tuple(variant for variant in _implementations() if variant.name == "mmrazor")

STUDIES: dict[str, tuple[Pair, ...]] = {
    "small": (Pair("resnet20-resnet8", str(HERE / "small.toml"), variants=_SMALL_VARIANTS),),
    "full": (
        # The teacher looks at eight views of each image, once; for all variants together that takes 55 GB of disk.
        Pair(
            "resnet56-resnet20",
            "cifar10/resnet56-resnet20",
            (*_GPU, "cache.views=8"),
            seeds=5,
            variants=_FULL_VARIANTS,
        ),
        Pair(
            "resnet50-resnet18",
            "cifar10/resnet50-resnet18",
            _GPU,
            ("student", "kd", "factor", "factor+kd"),
            variants=_MMRAZOR,
        ),
    ),
}
