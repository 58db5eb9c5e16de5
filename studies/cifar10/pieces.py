"""The pieces that a study is cut into: what each is made by, and whether its record is there."""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from factor_transfer.config.read import shipped
from factor_transfer.errors import InputError
from factor_transfer.files import read_json, sha256
from plan import STUDIES, Pair, Variant

# Tables of a recipe that say nothing of a piece: those of what comes after it.
_LATER = {"teacher": ("paraphraser", "student", "cache", "transfer"), "paraphraser": ("student", "transfer")}


@dataclass(frozen=True)
class Place:
    """Where a study is run.

    Attributes:
        work: what is trained lies there.
        records: what is said of it.
        changes: of every recipe, such as where the images are; they do not change what comes out.
        trial: of every recipe, too: they make it short, and worthless but as a trial.
        console: what a person sees.
    """

    work: Path
    records: Path
    changes: tuple[str, ...] = ()
    trial: tuple[str, ...] = ()
    console: Console = field(default_factory=Console)

    def say(self, text: str) -> None:
        """A line for the person."""
        self.console.print(text, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Piece:
    """A part of a study that can be run by itself, when those that it needs are done.

    Attributes:
        pair: of networks.
        task: ``"teacher"``, ``"paraphraser"``, ``"students"`` or ``"choice"``.
        variant: of factor transfer; ``None``: the recipe as it stands.
        seed: of the students.
    """

    pair: Pair
    task: str
    variant: Variant | None = None
    seed: int | None = None

    @property
    def name(self) -> str:
        """Such as ``"resnet20-resnet8/beta=50/seed0"``: where its record lies."""
        which = [self.variant.name] if self.variant else ["methods"] if self.task == "students" else []
        return "/".join([self.pair.name, *which, self.task if self.seed is None else f"seed{self.seed}"])

    @property
    def methods(self) -> tuple[str, ...]:
        """Of its students."""
        return ("factor",) if self.variant else self.pair.methods

    def needs(self) -> list["Piece"]:
        """What it is made from."""
        pair, variant = self.pair, self.variant
        if self.task == "teacher":
            return []
        if self.task == "choice":
            among = [None, *pair.variants]
            return [Piece(pair, "students", one, seed) for one in among for seed in range(pair.variant_seeds)]
        needed = [Piece(pair, "teacher")]
        usual = variant is None or not variant.own_paraphraser
        if usual and not (self.task == "paraphraser" and variant is None):
            needed.append(Piece(pair, "paraphraser"))
        if self.task == "students" and variant is not None and variant.own_targets:
            needed.append(Piece(pair, "paraphraser", variant))
        return needed

    def record(self, place: Place) -> Path:
        """The file of its record."""
        return place.records / f"{self.name}.json"

    def settings(self, place: Place) -> dict[str, Any]:
        """What it is made by: the recipe, as far as it concerns this piece, and what is changed of it."""
        path = shipped().get(self.pair.recipe, Path(self.pair.recipe))
        recipe = tomllib.loads(path.read_text(encoding="utf-8"))
        for table in _LATER.get(self.task, ()):
            recipe.pop(table, None)
        changes = [*self.pair.changes, *(self.variant.changes if self.variant else ()), *place.trial]
        settings: dict[str, Any] = {"recipe": recipe, "changes": changes}
        if self.task == "students":
            settings["methods"] = list(self.methods)
        if self.task == "choice":
            settings["methods"] = list(self.pair.chosen)
        return settings

    def made_from(self, place: Place) -> dict[str, str]:
        """SHA-256 of the records of what it needs.

        Raises:
            InputError: one is not there, or not what the study would write now.
        """
        for need in self.needs():
            if not need.is_done(place):
                raise InputError(f"{self.name} needs {need.name}, which is not done; run that first")
        return {need.name: sha256(need.record(place)) for need in self.needs()}

    def outdated(self, place: Place) -> str | None:
        """Why its record is not what the study would write now, if so."""
        record = read_json(self.record(place))
        if record.get("settings") != self.settings(place):
            return "was made by other settings than the study's"
        try:
            made_from = self.made_from(place)
        except InputError as error:
            return f"is of a study that is not here: {error}"
        then = record.get("made_from", {})
        others = [name for name, digest in made_from.items() if then.get(name) != digest]
        return f"was made from another {others[0]}" if others else None

    def is_done(self, place: Place) -> bool:
        """Whether it has a record.

        Raises:
            InputError: of something else than the study would write now.
        """
        if not self.record(place).is_file():
            return False
        fault = self.outdated(place)
        if fault:
            raise InputError(f"{self.record(place)} {fault}; move it away to make it anew")
        return True


def pieces(study: str) -> Iterator[Piece]:
    """All pieces of a study, each after those that it needs."""
    for pair in STUDIES[study]:
        yield Piece(pair, "teacher")
        yield Piece(pair, "paraphraser")
        for variant in pair.variants:
            if variant.own_targets:
                yield Piece(pair, "paraphraser", variant)
        yield from (Piece(pair, "students", None, seed) for seed in range(pair.seeds))
        for variant in pair.variants:
            yield from (Piece(pair, "students", variant, seed) for seed in range(pair.variant_seeds))
        if pair.variants:
            yield Piece(pair, "choice")
