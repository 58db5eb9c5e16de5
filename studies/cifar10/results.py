"""What the records of a study say."""

from collections.abc import Mapping
from typing import Any

from factor_transfer.commands.compare import summarize
from factor_transfer.files import read_json
from factor_transfer.report.confidence import Estimate, estimate
from factor_transfer.report.names import name_of
from pieces import Piece, Place, pieces
from plan import STUDIES, Pair, Variant

Run = Mapping[str, Any]


class Results:
    """Of a pair of networks, as far as its pieces are done.

    Args:
        study: ``"small"`` or ``"full"``.
        pair: of that study.
        place: where the study's records are.

    Raises:
        InputError: a record is of something else than the study would write now.
    """

    def __init__(self, study: str, pair: Pair, place: Place) -> None:
        self.pair = pair
        own = [piece for piece in pieces(study) if piece.pair == pair]
        self.records: dict[str, Run] = {
            piece.name: read_json(piece.record(place)) for piece in own if piece.is_done(place)
        }

    @property
    def teacher(self) -> Run:
        """Its record."""
        return self.records[Piece(self.pair, "teacher").name]

    @property
    def is_begun(self) -> bool:
        """Whether there are students to speak of."""
        return any(self.runs(method) for method in self.pair.methods)

    @property
    def choice(self) -> Run | None:
        """Which of the variants was best on validation images, and its students on the test images."""
        return self.records.get(Piece(self.pair, "choice").name)

    def paraphraser(self, variant: Variant | None = None) -> Run | None:
        """How the paraphraser was trained; ``None`` if there is none, or not yet."""
        if variant is not None and "transfer.factor.paraphrase=false" in variant.changes:
            return None
        own = variant if variant is not None and variant.own_paraphraser else None
        return self.records.get(Piece(self.pair, "paraphraser", own).name, {}).get("paraphraser")

    def runs(self, method: str = "factor", variant: Variant | None = None) -> dict[int, Run]:
        """The students of a method, by seed; one that failed has an ``error``."""
        seeds = self.pair.variant_seeds if variant else self.pair.seeds
        records = (self.records.get(Piece(self.pair, "students", variant, seed).name) for seed in range(seeds))
        return {run["seed"]: run for record in records if record for run in record["runs"] if run["method"] == method}

    def tested(self) -> dict[str, dict[int, Run]]:
        """The students that saw the test images, by method and seed: ``"factor, k=0.25"`` is of the chosen variant."""
        found = {method: self.runs(method) for method in self.pair.methods}
        if self.choice is not None and self.choice["variant"] is not None:
            for method in self.pair.chosen:
                runs = {run["seed"]: run for run in self.choice["runs"] if run["method"] == method}
                found[f"{method}, {self.choice['variant']}"] = runs
        return found

    def summary(self) -> dict[str, Run]:
        """Of each of those: see ``summarize``; ``seeds``, how many did not fail; and ``top5``, their mean."""
        tested = self.tested()
        runs = [
            {"method": name, "seed": seed, "top1": run.get("test", {}).get("top1"), "seconds": run.get("seconds")}
            for name, by_seed in tested.items()
            for seed, run in by_seed.items()
        ]
        said = summarize(runs, list(tested), self.teacher["test"]["top1"])
        good = {name: [run for run in by_seed.values() if "test" in run] for name, by_seed in tested.items()}
        return {
            name: {
                **said[name],
                "seeds": len(own),
                "top5": estimate([run["test"]["top5"] for run in own]) if own else None,
            }
            for name, own in good.items()
        }

    def seconds(self) -> dict[str, float]:
        """Of all trainings, as each was measured, by what they were for."""
        total = {"teacher and paraphrasers": 0.0, "methods": 0.0, "variants": 0.0}
        of_methods = {Piece(self.pair, "students", None, seed).name for seed in range(self.pair.seeds)}
        for name, record in self.records.items():
            stages = [record[key] for key in ("teacher", "paraphraser") if key in record]
            total["teacher and paraphrasers"] += sum(stage["seconds"] for stage in stages)
            # What is chosen was trained already, by one of its methods.
            new = [run for run in record.get("runs", ()) if "variant" not in record or run["method"] != "factor"]
            total["methods" if name in of_methods else "variants"] += sum(run.get("seconds", 0.0) for run in new)
        return total


def label(tested: str) -> str:
    """What a table calls students that saw the test images."""
    method, comma, variant = tested.partition(", ")
    return name_of(method) + comma + variant


def tops(runs: Mapping[int, Run], split: str = "test") -> dict[int, float]:
    """Top-1 of the runs that did not fail, by seed."""
    return {seed: run[split]["top1"] for seed, run in runs.items() if split in run}


def paired(own: Mapping[int, float], other: Mapping[int, float]) -> Estimate | None:
    """The mean difference over the seeds that both have."""
    both = sorted(own.keys() & other.keys())
    return estimate([own[seed] - other[seed] for seed in both]) if both else None


def results(study: str, place: Place) -> list[Results]:
    """Of all pairs of a study."""
    return [Results(study, pair, place) for pair in STUDIES[study]]
