"""Running one piece of the study, and the record that it leaves."""

import json
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from rich.console import Console

from factor_transfer.commands.compare import figures_of
from factor_transfer.config.read import read_recipe, shipped
from factor_transfer.errors import Diverged, InputError
from factor_transfer.export.record import machine
from factor_transfer.files import read_json, write_json
from factor_transfer.pipeline.artefact import METRICS, WEIGHTS, Artefact, claim
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.stages.paraphraser import make_paraphraser
from factor_transfer.pipeline.stages.student import fill_cache, make_student
from factor_transfer.pipeline.stages.teacher import make_teacher
from plan import RECORDS, Piece
from publish import add_to_zoo, keep_best, list_in_zoo, zoo_name

HERE = Path(__file__).parent
WORK = Path("runs/cifar10")

# What a record says of each epoch, as far as it is in the stage's log.
_CURVE = ("epoch", "loss", "loss_ce", "loss_factor", "validation_top1", "validation_loss", "validation_relative_error")
# What a network's table says when its weights are taken as they are.
_NETWORK = ("model", "args", "tap", "mean", "std")


def record_of(piece: Piece) -> Path:
    """The file of a piece's record."""
    return RECORDS / f"{piece.name}.json"


def settings(piece: Piece, work: Path = WORK) -> list[str]:
    """The overrides of a piece's recipe, but for the folder of the images and the precision.

    Args:
        piece: from the plan.
        work: the folder of all work dirs.
    """
    document = tomllib.loads(shipped()[piece.recipe].read_text(encoding="utf-8"))
    changes = [f"student.seed={piece.seed}", f"transfer.method={piece.method}"] if piece.method else []
    if piece.teacher:
        changes.append(f"teacher={_taken(document['teacher'], _NETWORK, piece, piece.teacher, work)}")
    if piece.paraphraser:
        changes.append(f"paraphraser={_taken(document['paraphraser'], ('rate',), piece, piece.paraphraser, work)}")
    if piece.start:
        changes.append(f"{piece.stage}.weights={_weights(piece, piece.start, work)}")
    # A teacher that is taken as it is has no schedule to change.
    return [*changes, *(one for one in piece.overrides if not _of_taken(one, piece))]


def _weights(piece: Piece, needed: str, work: Path) -> str:
    """Where a piece finds the weights of another one that it needs."""
    if piece.is_large:
        return str(place_of(needed, work) / needed.rpartition("/")[2] / WEIGHTS)
    return f"zoo:{zoo_name(piece.recipe, needed)}"


def place_of(piece: str, work: Path) -> Path:
    """The work dir of the piece of this name."""
    return work / piece.replace("/", "-")


def _taken(table: Mapping[str, Any], keys: tuple[str, ...], piece: Piece, needed: str, work: Path) -> str:
    values = {key: table[key] for key in keys if key in table} | {"weights": _weights(piece, needed, work)}
    return "{" + ", ".join(f"{key} = {_inline(value)}" for key, value in values.items()) + "}"


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_inline(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value)


def _of_taken(override: str, piece: Piece) -> bool:
    stage, _, key = override.partition("=")[0].partition(".")
    taken = {"teacher": piece.teacher, "paraphraser": piece.paraphraser}
    return bool(taken.get(stage)) and key not in _NETWORK


def run(piece: Piece, work: Path, data: Path, speed: Mapping[str, str], console: Console) -> dict[str, Any]:
    """Run a piece, or resume it, and write its record.

    A training that diverges is a result; everything else that goes wrong is an error.

    Args:
        piece: from the plan.
        work: the folder of all work dirs.
        data: the folder of CIFAR-10.
        speed: the recipe's ``precision``, ``compile`` and ``threads``, which depend on the machine.
        console: where progress is shown.

    Returns:
        The record.

    Raises:
        InputError: what the piece needs is missing, or another process is running it.
    """
    changes = settings(piece, work)
    here = [f"data.root={data.resolve()}", *(f"{key}={value}" for key, value in speed.items())]
    recipe = read_recipe(piece.recipe, [*changes, *here])
    place = place_of(piece.name, work)
    experiment = Experiment(recipe, place, console, piece.name)
    record: dict[str, Any] = {"piece": piece.name, "recipe": piece.recipe, "settings": changes}
    record |= {"method": piece.method or None, "seed": piece.seed, "setting": piece.setting}
    try:
        done = _train(piece, experiment, work)
    except Diverged as error:
        record["error"] = str(error)
    else:
        record |= _described(done)
        if piece.test and piece.stage != "paraphraser":
            record["test"] = figures_of(experiment, done)
        if piece.is_large:
            if piece.seed == 0:
                list_in_zoo(piece.recipe, piece.name, done, record, f"{piece.recipe}/{done.folder.name}")
        elif piece.is_pretraining:
            add_to_zoo(piece.recipe, piece.name, done, record)
        elif piece.test and not piece.setting:
            keep_best(piece.recipe, piece.name, done, record)
        own = place / "paraphraser"
        if piece.stage == "student" and not piece.paraphraser and own.is_dir():
            record["paraphraser"] = read_json(own / "stage.json")["validation"]
    device = {"device": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    record |= {**speed, "machine": machine(), **device, "commit": _commit()}
    write_json(record_of(piece), record)
    return record


def _train(piece: Piece, experiment: Experiment, work: Path) -> Artefact:
    if piece.stage == "teacher":
        return make_teacher(experiment)
    if piece.method == "student":
        return make_student(experiment)
    with _shared(piece, experiment, work):
        make_teacher(experiment)
        done = make_paraphraser(experiment) if piece.stage == "paraphraser" or "factor" in piece.method else None
        if piece.stage == "paraphraser":
            assert done is not None
            return done
        fill_cache([experiment])
    return make_student(experiment)


@contextmanager
def _shared(piece: Piece, experiment: Experiment, work: Path) -> Iterator[None]:
    """Link the factor cache, and a setting's own paraphraser, to a place for all seeds, which one process fills."""
    on_small = piece.group in ("levers", "best", "implementations")
    base = work / "shared" / ("small" if on_small else piece.group)
    own = not piece.paraphraser and piece.stage == "student" and "factor" in piece.method
    shared = base.with_name(f"{base.name}-{piece.setting}") if own else base
    links = {"cache": shared / "cache"} | ({"paraphraser": shared / "paraphraser"} if own else {})
    claim(experiment.work_dir, experiment.recipe.name)
    for name, target in links.items():
        target.mkdir(parents=True, exist_ok=True)
        if not (experiment.work_dir / name).exists():
            (experiment.work_dir / name).symlink_to(target.resolve(), target_is_directory=True)
    with FileLock(shared / ".lock"):
        yield


def _described(done: Artefact) -> dict[str, Any]:
    lines = [json.loads(line) for line in (done.folder / METRICS).read_text(encoding="utf-8").splitlines()]
    return {
        "validation": done.record["validation"],
        "seconds": done.record["seconds"],
        "weights_sha256": done.record["weights_sha256"],
        "versions": done.record["versions"],
        "curve": [{key: line[key] for key in _CURVE if key in line} for line in lines],
    }


def _commit() -> str:
    said = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False)
    return said.stdout.strip()


def is_done(piece: Piece, work: Path) -> bool:
    """Whether a piece has a record, and the weights that later ones need are here."""
    here = not (piece.is_large and piece.is_pretraining) or Path(_weights(piece, piece.name, work)).is_file()
    return record_of(piece).is_file() and here


def missing(piece: Piece, work: Path) -> list[str]:
    """The pieces that it needs and that have no record yet, or whose weights are on another machine."""
    needs = [name for name in (piece.start, piece.teacher, piece.paraphraser) if name]
    if piece.is_large:
        return [name for name in needs if not Path(_weights(piece, name, work)).is_file()]
    return [name for name in needs if not (RECORDS / f"{name}.json").is_file()]


def check_data(data: Path) -> None:
    """See that CIFAR-10 is there.

    Raises:
        InputError: it is not.
    """
    if not any((data / f"cifar-10-batches-{layout}").is_dir() for layout in ("bin", "py")):
        raise InputError(f"no CIFAR-10 in {data}: give the folder of cifar-10-batches-bin with --data")
