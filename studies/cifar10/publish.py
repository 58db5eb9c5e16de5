"""What the study trains, put into the zoo: teachers and paraphrasers, and of each pair two students."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from factor_transfer.config.read import as_toml, read_recipe
from factor_transfer.files import read_json, sha256, write_atomic, write_json
from factor_transfer.pipeline.artefact import METRICS, RECIPE, RECORD, WEIGHTS, Artefact
from factor_transfer.pipeline.weights.zoo import INDEX, SUMS

ZOO = Path(__file__).parents[2] / "zoo"

# Several processes may finish pieces at the same time.
_LOCK = FileLock(ZOO.with_name(f".{ZOO.name}.lock"))


def zoo_name(recipe: str, piece: str) -> str:
    """The name in the zoo of what a piece trains: ``"cifar10/resnet20-resnet8/teacher"``."""
    return f"{recipe}/{piece.rpartition('/')[2]}"


def add_to_zoo(recipe: str, piece: str, done: Artefact, record: Mapping[str, Any], name: str = "") -> None:
    """Copy a finished stage into the zoo, and list it with its figures.

    Args:
        recipe: the name of the recipe that it was trained by.
        piece: the name of the piece.
        done: the stage.
        record: the piece's record.
        name: its name in the zoo; that of the piece, if left out.
    """
    name = name or zoo_name(recipe, piece)
    folder = ZOO / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in (WEIGHTS, RECORD, METRICS):
        shutil.copyfile(done.folder / file, folder / file)
    if (done.folder / RECIPE).is_file():  # a student's; where the images lay is nobody else's business
        own = read_recipe(done.folder / RECIPE, ["data.root=data"])
        write_atomic(folder / RECIPE, as_toml(own).encode())
    list_in_zoo(recipe, piece, done, record, name)
    write_sums()


def list_in_zoo(recipe: str, piece: str, done: Artefact, record: Mapping[str, Any], name: str = "") -> None:
    """List a finished stage in the zoo with its figures; the arguments are those of ``add_to_zoo``."""
    name, test = name or zoo_name(recipe, piece), record.get("test", {})
    entry = {
        "network": done.record.get("model", {}).get("name") or f"paraphraser of {Path(recipe).name.partition('-')[0]}",
        "top1": test.get("top1"),
        "top5": test.get("top5"),
        "data": "CIFAR-10",
        "recipe": f"recipes/{recipe}.toml",
        "command": f"python studies/cifar10/study.py run --only {piece}",
    }
    with _LOCK:
        write_json(ZOO / INDEX, dict(sorted({**read_json(ZOO / INDEX), name: entry}.items())))


def keep_best(recipe: str, piece: str, done: Artefact, record: Mapping[str, Any]) -> None:
    """Keep a student in the zoo if it is the best of its kind on validation images: alone, or with a teacher."""
    with _LOCK:
        alone = record["method"] == "student"
        prefix = f"{recipe}/student-"
        listed = read_json(ZOO / INDEX)
        rivals = [name for name in listed if name.startswith(prefix) and name.startswith(f"{prefix}alone") == alone]
        reached = [read_json(ZOO / name / RECORD)["validation"]["top1"] for name in rivals]
        if any(other >= record["validation"]["top1"] for other in reached):
            return
        for name in rivals:
            shutil.rmtree(ZOO / name)
        write_json(ZOO / INDEX, {name: entry for name, entry in listed.items() if name not in rivals})
        add_to_zoo(recipe, piece, done, record, f"{recipe}/{done.folder.name}")


def write_sums() -> None:
    """Write the SHA-256 of all files of the zoo, in the format of ``sha256sum``."""
    files = sorted(path for path in ZOO.rglob("*") if path.is_file() and path.parent != ZOO)
    lines = [f"{sha256(path)}  {path.relative_to(ZOO).as_posix()}\n" for path in files]
    write_atomic(ZOO / SUMS, "".join(lines).encode())
