"""The pieces of the study, in the order in which they are run.

A piece is one training: a teacher, a paraphraser, or a student of one method and seed with some settings. Each takes
about an hour of one core at most, or resumes from its checkpoint, and leaves one record.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from factor_transfer.files import read_json

RECORDS = Path(__file__).parent / "records"

SMALL, AUTHORS, SEED = "cifar10/resnet20-resnet8", "cifar10/resnet56-resnet20", "cifar10/resnet50-resnet18"


def _for_networks(*settings: str) -> tuple[str, ...]:
    return tuple(f"{stage}.{setting}" for stage in ("teacher", "student") for setting in settings)


# An optimiser that trains the paraphraser in few epochs; ``levers`` compare it with the authors' SGD.
_ADAMW = ("paraphraser.optimizer=adamw", "paraphraser.weight_decay=0.0", "paraphraser.schedule=cosine")
# The authors' pair in 40 epochs in place of 164, with a cosine schedule and eight fixed views of each image.
_SHORTENED = (
    *_for_networks("epochs=40", "schedule=cosine", "warmup_epochs=1", "nesterov=true"),
    *_ADAMW,
    "paraphraser.epochs=8",
    "paraphraser.learning_rate=0.003",
    "cache.views=8",
)
# The model-zoo page's pair in 24 epochs in place of 200, in large batches: a few minutes of a large GPU.
_ON_A_GPU = (
    *_for_networks("epochs=24", "batch_size=512", "learning_rate=0.4", "schedule=cosine"),
    *_for_networks("warmup_epochs=3", "nesterov=true"),
    *_ADAMW,
    "paraphraser.epochs=4",
    "paraphraser.batch_size=512",
    "paraphraser.learning_rate=0.0002",
    "paraphraser.warmup_epochs=0.5",
)


@dataclass(frozen=True)
class Piece:
    """One training of the study.

    Attributes:
        group: the part of the study, such as ``"small"``.
        stage: ``"teacher"``, ``"paraphraser"`` or ``"student"``.
        recipe: the name of a shipped recipe.
        overrides: changes of the recipe, ``KEY=VALUE``.
        method: of a student, such as ``"factor+kd"``; ``"student"`` is the student alone.
        seed: of a student.
        setting: what is different from the group's recipe, such as ``"beta=50"``; empty for the recipe as it is.
        teacher: the piece that trains its teacher.
        paraphraser: the piece that trains its paraphraser; a piece that needs one and names none trains its own.
        start: the piece whose weights it starts from.
        test: whether its network sees the test images; settings are compared on validation images alone.
        minutes: about how long it takes on one core with bfloat16, for ``study.py status``.
    """

    group: str
    stage: str
    recipe: str
    overrides: tuple[str, ...] = ()
    method: str = ""
    seed: int = 0
    setting: str = ""
    teacher: str = ""
    paraphraser: str = ""
    start: str = ""
    test: bool = True
    minutes: float = 15.0

    @property
    def name(self) -> str:
        """The name of its record, such as ``"small/factor+kd-seed1"`` or ``"levers/beta=50-seed0"``."""
        if self.stage != "student":
            return f"{self.group}/{self.stage}" + (f"-{self.setting}" if self.setting else "")
        return f"{self.group}/{self.setting or self.method}-seed{self.seed}"

    @property
    def is_large(self) -> bool:
        """Whether its weights are too large for the zoo, so that later pieces need its work dir."""
        return self.recipe == SEED

    @property
    def is_pretraining(self) -> bool:
        """Whether later pieces need its weights."""
        return self.stage != "student"


def _students(
    group: str, recipe: str, overrides: tuple[str, ...], methods: dict[str, int], minutes: float
) -> Iterator[Piece]:
    """Students of methods with as many seeds each, seed by seed, so that early records can be compared."""
    for seed in range(max(methods.values())):
        for method, seeds in methods.items():
            if seed < seeds:
                teacher = "" if method == "student" else f"{group}/teacher"
                paraphraser = f"{group}/paraphraser" if "factor" in method else ""
                needs: dict[str, Any] = {"teacher": teacher, "paraphraser": paraphraser}
                yield Piece(group, "student", recipe, overrides, method, seed, minutes=minutes, **needs)


def _lever(setting: str, *overrides: str, own: bool = False) -> Iterator[Piece]:
    """A setting of Factor Transfer on the small pair, on validation images, with two seeds."""
    needs: dict[str, Any] = {"teacher": "small/teacher", "paraphraser": "" if own else "small/paraphraser"}
    for seed in range(2):
        yield Piece("levers", "student", SMALL, overrides, "factor", seed, setting, test=False, **needs)


def _levers() -> Iterator[Piece]:
    for beta in (50, 150, 1500):
        yield from _lever(f"beta={beta}", f"transfer.factor.beta={beta}")
    for rate in (0.25, 1.0):
        yield from _lever(f"k={rate:g}", f"paraphraser.rate={rate}", own=True)
    yield from _lever("p=2", "transfer.factor.p=2")
    for schedule in ("linear", "cosine"):
        yield from _lever(f"schedule={schedule}", f"transfer.schedule={schedule}")
    sgd = ("optimizer=sgd", "learning_rate=0.1", "weight_decay=5e-4")
    yield from _lever("paraphraser=sgd", *(f"paraphraser.{setting}" for setting in sgd), own=True)
    # Trained, but by steps so small that float32 does not see them.
    yield from _lever("paraphraser=untrained", "paraphraser.epochs=1", "paraphraser.learning_rate=1e-30", own=True)
    yield from _lever("paraphraser=none", "transfer.factor.paraphrase=false", own=True)
    for tap in ("layer2", '["layer2","layer3"]'):
        name = "layer2+layer3" if "[" in tap else tap
        yield from _lever(f"tap={name}", f"teacher.tap={tap}", f"student.tap={tap}", own=True)


def best(levers: Sequence[Piece], records: Path) -> list[Piece]:
    """The setting with the highest top-1 on validation images, with five seeds that see the test images.

    Args:
        levers: the settings that are compared with each other and with the recipe, which has the same seeds.
        records: the folder of the records.

    Returns:
        Its pieces; none as long as a record is missing, or if no setting is better than the recipe.
    """

    def top1(name: str) -> float:
        record = read_json(records / f"{name}.json")
        return float(record.get("validation", {}).get("top1", 0.0))  # a training that diverged has no figures

    seeds = sorted({piece.seed for piece in levers})
    recipe = [f"small/factor-seed{seed}" for seed in seeds]
    if not all((records / f"{name}.json").is_file() for name in [*recipe, *(piece.name for piece in levers)]):
        return []

    def reached(setting: str) -> float:
        return mean(top1(piece.name) for piece in levers if piece.setting == setting)

    first = max(levers, key=lambda piece: reached(piece.setting))
    if reached(first.setting) <= mean(top1(name) for name in recipe):
        return []
    return [replace(first, group="best", seed=seed, test=True) for seed in range(5)]


def _implementations() -> Iterator[Piece]:
    """Connectors and factor term as other implementations have them; the students' schedule is the small pair's."""
    from factor_transfer.config.presets import PRESETS

    for name in ("authors", "torchdistill", "repdistiller", "mmrazor"):
        preset = PRESETS[name]
        # What a preset leaves out has its usual default there; this recipe has other values.
        changes = ["paraphraser.optimizer=sgd", "paraphraser.weight_decay=5e-4", "paraphraser.schedule=constant"]
        changes += [f"paraphraser.{key}={_toml(value)}" for key, value in preset.get("paraphraser", {}).items()]
        changes += [f"transfer.factor.{key}={_toml(value)}" for key, value in preset["transfer"]["factor"].items()]
        sides = [side for side in ("teacher", "student") if "tap" in preset.get(side, {})]
        changes += [f"{side}.tap={preset[side]['tap']}" for side in sides]
        for seed in range(3):
            needs: dict[str, Any] = {"teacher": "small/teacher"}
            yield Piece("implementations", "student", SMALL, tuple(changes), "factor", seed, name, **needs)


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _pretraining(group: str, recipe: str, overrides: tuple[str, ...], minutes: float) -> Iterator[Piece]:
    yield Piece(group, "teacher", recipe, overrides, minutes=minutes)
    yield Piece(group, "paraphraser", recipe, overrides, teacher=f"{group}/teacher", minutes=minutes / 8)


def _small() -> Iterator[Piece]:
    # One cycle of the learning rate did not bring the teacher to 91 % on validation images; a second, shorter one does.
    yield Piece("small", "teacher", SMALL, setting="first-cycle", minutes=75)
    cycle = ("teacher.epochs=16", "teacher.learning_rate=0.05")
    yield Piece("small", "teacher", SMALL, cycle, start="small/teacher-first-cycle", minutes=25)
    yield Piece("small", "paraphraser", SMALL, teacher="small/teacher", minutes=8)
    methods = {"student": 5, "kd": 5, "factor": 5, "factor+kd": 5, "at": 5, "fitnets": 3, "at+kd": 3}
    yield from _students("small", SMALL, (), methods, 15)


def pieces(records: Path = RECORDS) -> list[Piece]:
    """All pieces, each after those that it needs.

    Args:
        records: the folder of the records, which say which of the settings on validation images is the best.
    """
    levers = list(_levers())
    return [
        *_small(),
        *levers,
        *best(levers, records),
        *_pretraining("authors", AUTHORS, _SHORTENED, 200),
        *_students("authors", AUTHORS, _SHORTENED, {"student": 3, "factor": 3, "kd": 3, "factor+kd": 3, "at": 3}, 70),
        *_implementations(),
        *_pretraining("seed", SEED, _ON_A_GPU, 6000),
        *_students("seed", SEED, _ON_A_GPU, {"student": 3, "factor": 3, "kd": 3}, 3000),
    ]
