"""What is done for each piece of a study, and where: teacher, paraphraser, students, and the choice of a variant."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

from factor_transfer.commands.compare import figures_of
from factor_transfer.config.read import read_recipe
from factor_transfer.errors import Diverged, InputError
from factor_transfer.files import read_json, write_json
from factor_transfer.pipeline import artefact
from factor_transfer.pipeline.artefact import Artefact, claim
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.stages.all import fill_cache, make_paraphraser, make_students, make_teacher
from pieces import Piece, Place
from plan import Variant


def run(piece: Piece, place: Place) -> None:
    """Do it, or go on with it, and write its record.

    A training that diverges is a result, of a rival's method or a variant. All else that goes wrong is none.

    Raises:
        InputError: what it needs is not done, or not here.
    """
    # What is written down is what it was begun with, whatever is edited meanwhile.
    made_by = {"piece": piece.name, "settings": piece.settings(place), "made_from": piece.made_from(place)}
    for need in piece.needs():
        if need.task in ("teacher", "paraphraser"):
            _check_here(need, place)
    write_json(piece.record(place), made_by | _TASKS[piece.task](piece, place))


def folder(piece: Piece, place: Place) -> Path:
    """The work dir of a piece."""
    base = place.work / piece.pair.name
    own = base / piece.variant.name if piece.variant else base
    if piece.seed is None:
        return own
    return (own if piece.variant else own / "methods") / f"seed{piece.seed}"


def experiment(piece: Piece, place: Place) -> Experiment:
    """The recipe in the piece's own folder, which has what it needs of earlier pieces."""
    changes = [*piece.settings(place)["changes"], *place.changes, f"student.seed={piece.seed or 0}"]
    recipe = read_recipe(piece.pair.recipe, changes)
    base = place.work / piece.pair.name
    claim(base, recipe.name)
    own = folder(Piece(piece.pair, "paraphraser", piece.variant), place)
    if piece.variant:
        claim(own, recipe.name)
        variant = piece.variant
        shared = {
            "teacher": True,
            "cache/teacher": not variant.own_taps,
            "paraphraser": not variant.own_paraphraser,
            "cache/factor": not variant.own_targets,
        }
        for name, is_shared in shared.items():
            if is_shared:
                _link(own / name, base / name)
    here = folder(piece, place)
    if piece.seed is not None:
        claim(here, recipe.name)
        for name in ("teacher", "paraphraser", "cache"):
            _link(here / name, own / name)
    return Experiment(recipe, here, place.console, " ".join([piece.pair.recipe, *changes]))


def _link(link: Path, target: Path) -> None:
    """Let ``link`` stand for what lies, or will lie, at ``target``."""
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        link.symlink_to(os.path.relpath(target, link.parent), target_is_directory=True)
    except FileExistsError:  # of an earlier piece, or of one at the same time
        if link.resolve() != target.resolve():
            raise InputError(f"{link} should be a link to {target}; move it away") from None


def _check_here(need: Piece, place: Place) -> None:
    """See that what a record speaks of lies in the work dir."""
    record = read_json(need.record(place))
    if need.task in record:
        found = artefact.find(folder(need, place) / need.task)
        if found is None or found.record["weights_sha256"] != record[need.task]["weights_sha256"]:
            raise InputError(
                f"{need.record(place)} is of a training that is not in {folder(need, place)}: give the work dir "
                f"that it was run in, or move {place.records} away to run all of it anew"
            )


def _teacher(piece: Piece, place: Place) -> dict[str, Any]:
    own = experiment(piece, place)
    done = make_teacher(own)
    return {"teacher": _described(done), "test": figures_of(own, done, own.test)}


def _paraphraser(piece: Piece, place: Place) -> dict[str, Any]:
    own = experiment(piece, place)
    found: dict[str, Any] = {}
    try:
        if piece.variant is None or piece.variant.own_paraphraser:
            found["paraphraser"] = _described(make_paraphraser(own))
        fill_cache([own.with_method(method) for method in piece.methods])
    except Diverged as error:
        if piece.variant is None:
            raise
        found["error"] = str(error)
    return found


def _students(piece: Piece, place: Place) -> dict[str, Any]:
    pretrained = [need for need in piece.needs() if need.task == "paraphraser"]
    for need in pretrained:
        error = read_json(need.record(place)).get("error")
        if error is not None:
            said = f"there is no paraphraser: {error}"
            return {"runs": [{"method": method, "seed": piece.seed, "error": said} for method in piece.methods]}
    # Variants are looked at on validation images alone.
    return {"runs": _runs(piece, place, piece.methods, test=piece.variant is None)}


def _runs(piece: Piece, place: Place, methods: tuple[str, ...], test: bool) -> list[dict[str, Any]]:
    """A student of each method."""
    own = experiment(piece, place)
    several = [own.with_method(method, piece.seed) for method in methods]
    made: list[Artefact | Exception]
    try:
        made = make_students(several)
    except Diverged as error:  # where there is only one
        made = [error]
    runs = []
    for method, done in zip(methods, made, strict=True):
        run: dict[str, Any] = {"method": method, "seed": piece.seed}
        if isinstance(done, Diverged):
            run["error"] = str(done)
        elif isinstance(done, Exception):
            raise done
        else:
            run |= _described(done)
            if test:
                run["test"] = figures_of(own, done, own.test)
        runs.append(run)
    return runs


def _choice(piece: Piece, place: Place) -> dict[str, Any]:
    """Of all variants, the recipe as it stands among them, the best on validation images is tested."""
    pair, seeds = piece.pair, range(piece.pair.variant_seeds)

    def reached(variant: Variant | None) -> float:
        """Top-1 of its students, the mean over seeds; one that diverged has none."""
        records = [read_json(Piece(pair, "students", variant, seed).record(place)) for seed in seeds]
        runs = [run for record in records for run in record["runs"] if run["method"] == "factor"]
        return mean(run["validation"]["top1"] if "validation" in run else 0.0 for run in runs)

    best = max([None, *pair.variants], key=reached)
    if best is None:
        return {"variant": None, "runs": []}
    students = [Piece(pair, "students", best, seed) for seed in seeds]
    return {
        "variant": best.name,
        "runs": [run for one in students for run in _runs(one, place, pair.chosen, test=True)],
    }


def _described(done: Artefact) -> dict[str, Any]:
    """What a record says of a stage: figures of each epoch, time, and what it was made with."""
    said = {key: done.record[key] for key in ("validation", "seconds", "weights_sha256", "versions", "machine")}
    kept = ("epoch", "loss", "validation_top1", "validation_loss", "validation_relative_error")
    lines = [json.loads(line) for line in (done.folder / artefact.METRICS).read_text(encoding="utf-8").splitlines()]
    return {**said, "epochs": [{key: line[key] for key in kept if key in line} for line in lines]}


_TASKS: dict[str, Callable[[Piece, Place], dict[str, Any]]] = {
    "teacher": _teacher,
    "paraphraser": _paraphraser,
    "students": _students,
    "choice": _choice,
}
