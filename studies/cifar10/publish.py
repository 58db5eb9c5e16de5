"""Put what a study trained into the zoo: of each pair teacher, paraphraser, the student alone and the best student.

    python studies/cifar10/publish.py small --work-dir runs/study-cifar10

The best student is of the method, or of the chosen variant, with the highest top-1 on validation images, the mean over
seeds; of its seeds, and of those of the student alone, the one with the highest is kept. What would make the zoo too
large is listed with its figures and the command that makes it, without its files.
"""

import argparse
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from factor_transfer.cli.exit import ending
from factor_transfer.config.read import as_toml, read_recipe
from factor_transfer.errors import InputError
from factor_transfer.files import read_json, sha256, write_atomic, write_json
from factor_transfer.pipeline import artefact
from factor_transfer.pipeline.artefact import METRICS, RECIPE, RECORD, WEIGHTS, Artefact
from factor_transfer.pipeline.finished_run import method_of
from factor_transfer.pipeline.weights.zoo import INDEX, SUMS, Entry, entries
from factor_transfer.report.names import name_of
from pieces import Piece, Place
from plan import HERE, STUDIES, Variant
from results import Results, results, tops
from tasks import folder

ZOO = HERE.parents[1] / "zoo"
PROJECT_README = HERE.parents[1] / "README.md"
_TABLE = re.compile(r"(<!-- zoo -->\n).*?(<!-- end -->)", re.DOTALL)
LARGEST = 5_000_000  # bytes of a file of weights: a repository is no place for more


def publish(study: str, work: Path) -> None:
    """All pairs of a study that are done."""
    listed = read_json(ZOO / INDEX) if (ZOO / INDEX).is_file() else {}
    place = Place(work / study, HERE / "records" / study)
    for result in results(study, place):
        if not result.is_begun:
            continue
        found = chosen(result, place)  # before anything is removed
        pair = f"cifar10/{result.pair.name}"
        listed = {name: said for name, said in listed.items() if not name.startswith(f"{pair}/")}
        shutil.rmtree(ZOO / pair, ignore_errors=True)
        for done, said in found:
            name = f"{pair}/{done.folder.name}"
            listed[name] = said
            _copy(done, ZOO / name)
    write_json(ZOO / INDEX, dict(sorted(listed.items())))
    files = sorted(path for path in ZOO.rglob("*") if path.is_file() and path.parent != ZOO)
    lines = [f"{sha256(path)}  {path.relative_to(ZOO).as_posix()}\n" for path in files]
    write_atomic(ZOO / SUMS, "".join(lines).encode())
    PROJECT_README.write_text(with_table(PROJECT_README.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{len(listed)} entries, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB in {ZOO}")


def chosen(result: Results, place: Place) -> list[tuple[Artefact, dict[str, Any]]]:
    """The stages of a pair that are worth keeping, and what is said of them.

    Raises:
        InputError: what lies in the work dir is not what the records speak of.
    """
    pair, tested = result.pair, result.tested()
    taught = {name: tops(runs, "validation") for name, runs in tested.items() if name != "student" and tops(runs)}
    best = max(taught, key=lambda name: mean(taught[name].values()), default=None)
    method, _, varied = (best or "").partition(", ")
    variant = next((one for one in pair.variants if one.name == varied), None)
    own = variant if variant is not None and variant.own_paraphraser else None

    teacher = _found(Piece(pair, "teacher"), "teacher", result.teacher["teacher"], place)
    network, test = teacher.record["model"]["name"], result.teacher["test"]
    made = _found(Piece(pair, "paraphraser", own), "paraphraser", result.paraphraser(own) or {}, place)
    said = {"network": f"paraphraser of {network}", "top1": None, "top5": None}
    stages = [
        (teacher, {"network": network, "top1": test["top1"], "top5": test["top5"], **_about(result)}),
        (made, said | _about(result, own)),
    ]
    for name, trained, of in (("student", "student", None), (best, method, variant)):
        reached = tops(tested.get(name or "", {}), "validation")
        if name is None or not reached:
            continue
        seed = max(reached, key=lambda seed: reached[seed])
        run = tested[name][seed]
        called = f"student-{'alone' if trained == 'student' else trained}-seed{seed}"
        done = _found(Piece(pair, "students", of, seed), called, run, place)
        figures = {"network": done.record["model"]["name"], **{key: run["test"][key] for key in ("top1", "top5")}}
        stages.append((done, figures | _about(result, of, f"transfer.method={trained}", f"student.seed={seed}")))
    return stages


def _found(piece: Piece, stage: str, said: Mapping[str, Any], place: Place) -> Artefact:
    """A stage in the work dir, if it is the one that a record speaks of."""
    where = folder(piece, place) / stage
    done = artefact.find(where)
    if done is None or done.record["weights_sha256"] != said.get("weights_sha256"):
        raise InputError(f"{where} does not hold what {piece.record(place)} speaks of")
    return done


def _about(result: Results, variant: Variant | None = None, *changes: str) -> dict[str, str]:
    """What stage it is, of what."""
    recipe = Path(result.pair.recipe)
    where = recipe.relative_to(HERE.parents[1]).as_posix() if recipe.is_absolute() else result.pair.recipe
    words = [where, *result.pair.changes, *(variant.changes if variant else ()), *changes]
    return {"data": "CIFAR-10", "recipe": where, "command": f"factor-transfer run {shlex.join(words)}"}


def with_table(readme: str) -> str:
    """The project's README with the zoo's students in its table: ``<!-- zoo -->`` … ``<!-- end -->``."""
    listed = entries()
    head = ["data set", "student", "teacher", "top-1 %", "top-5 %", "recipe", "paraphraser", "student's"]
    rows = [head, ["---"] * len(head), *(_row(listed, name) for name in listed if "/student-" in name)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return _TABLE.sub(lambda match: f"{match[1]}\n{table}\n\n{match[2]}", readme)


def _row(listed: Mapping[str, Entry], name: str) -> list[str]:
    """A student's cells."""
    entry, (pair, _, stage) = listed[name], name.rpartition("/")
    teacher, paraphraser = listed[f"{pair}/teacher"], listed[f"{pair}/paraphraser"]
    recipe = f"{_linked(entry)}/{RECIPE}" if entry.is_here else _recipe_file(entry.recipe)
    return [
        entry.data,
        f"{entry.network}, {name_of(method_of(stage))}",
        f"{teacher.network} ({teacher.top1:.2f})",
        f"{entry.top1:.2f}",
        f"{entry.top5:.2f}",
        f"[{Path(entry.recipe).stem}]({recipe})",
        _links(paraphraser) if "factor" in stage else "",
        _links(entry),
    ]


def _recipe_file(recipe: str) -> str:
    return recipe if recipe.endswith(".toml") else f"recipes/{recipe}.toml"


def _links(entry: Entry) -> str:
    if not entry.is_here:
        return f"`{entry.command}`"
    return f"[weights]({_linked(entry)}/{WEIGHTS}), [log]({_linked(entry)}/{METRICS})"


def _linked(entry: Entry) -> str:
    return f"zoo/{entry.name}".replace("+", "%2B")


def _copy(done: Artefact, target: Path) -> None:
    if done.weights.stat().st_size > LARGEST:
        return
    target.mkdir(parents=True)
    for name in (WEIGHTS, RECORD, METRICS):
        shutil.copyfile(done.folder / name, target / name)
    if (done.folder / RECIPE).is_file():  # of a student; where the images lay is nobody's business
        write_atomic(target / RECIPE, as_toml(read_recipe(done.folder / RECIPE, ["data.root=data"])).encode())


def main() -> None:
    """Publish one study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--work-dir", type=Path, default=Path("runs/study-cifar10"))
    arguments = parser.parse_args()
    with ending(debug=False):
        publish(arguments.study, arguments.work_dir)


if __name__ == "__main__":
    main()
