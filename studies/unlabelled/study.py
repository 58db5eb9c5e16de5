"""How much a student gains from images without labels, on Fashion-MNIST and CIFAR-10.

    python studies/unlabelled/study.py run [--fashion-mnist FOLDER] [--cifar10 FOLDER] [--minutes N] [--only NAME,NAME]
    python studies/unlabelled/study.py status
    python studies/unlabelled/study.py report

``run`` takes the cases of cases.py in their order, one method after the other, and writes ``records/<case>.json`` after
each method. It stops after the given time; the same command resumes. The teacher of Fashion-MNIST that has learned from
all labels is trained first and stored in ``teacher/``, so that another machine continues with the same one. The folders
have the files of the data sets; the cases of a data set without a folder are left out. ``report`` writes README.md, its
picture and the tables of other pages from the records.
"""

import argparse
import os
import shutil
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # so that its own modules come before those of other studies

import torch
from cases import CASES, DATA_SETS, FASHION_MNIST, Case, DataSet, given_teacher
from results import write_report
from rich.console import Console

from factor_transfer.commands.compare import COMPARISON, compare
from factor_transfer.config.read import read_recipe
from factor_transfer.errors import Interrupted
from factor_transfer.export.record import machine
from factor_transfer.files import read_json, write_json
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.stages.teacher import make_teacher

HERE = Path(__file__).parent
RECORDS, TEACHER = HERE / "records", HERE / "teacher"
WORK = Path("runs/unlabelled")


def record_of(case: Case) -> Path:
    """The file of a case's record."""
    return RECORDS / f"{case.name}.json"


def missing(case: Case) -> list[str]:
    """The methods of a case that are not in its record."""
    done = read_json(record_of(case))["methods"] if record_of(case).exists() else {}
    return [method for method in case.methods if method not in done]


def run_case(case: Case, methods: list[str], folder: Path, work: Path, console: Console) -> None:
    """Compare some methods, and write the record."""
    changes = [*case.settings, f"name={case.name}"]
    if not case.own_teacher and not case.data.pretrained:
        _provide_teacher(folder, work, console)
        changes.append(given_teacher(TEACHER / "weights.safetensors"))
    experiment = _experiment(case.data, changes, folder, work / case.name, console)
    compare(experiment, methods, case.data.seeds)
    comparison = read_json(work / case.name / COMPARISON)
    described = {"settings": case.settings, "precision": experiment.precision, "machine": machine()}
    write_json(record_of(case), {**described, **comparison})


def _provide_teacher(folder: Path, work: Path, console: Console) -> None:
    if TEACHER.is_dir():
        return
    done = make_teacher(_experiment(FASHION_MNIST, ["name=teacher"], folder, work / "teacher", console))
    shutil.copytree(done.folder, TEACHER, ignore=shutil.ignore_patterns("*.ckpt*"))


def _experiment(data: DataSet, changes: list[str], folder: Path, place: Path, console: Console) -> Experiment:
    here = [f"data.root={folder.resolve()}", "precision=auto", "compile=off"]
    return Experiment(read_recipe(data.recipe, [*changes, *here]), place, console, str(data.recipe))


def run(given: argparse.Namespace) -> None:
    """Run the cases until all are complete, or the time is over."""
    folders: Mapping[str, Path | None] = {data.name: getattr(given, data.name.replace("-", "_")) for data in DATA_SETS}
    torch.set_num_threads(1)
    console = Console()
    if given.minutes:
        timer = threading.Timer(60 * given.minutes, lambda: os.kill(os.getpid(), signal.SIGTERM))
        timer.daemon = True
        timer.start()
    for case in CASES:
        folder = folders[case.data.name]
        if folder is None or (given.only and case.name not in given.only.split(",")):
            continue
        for method in missing(case):
            methods = case.methods[: case.methods.index(method) + 1]
            console.print(f"{case.name}  {method}", highlight=False)
            try:
                run_case(case, list(methods), folder, WORK, console)
            except Interrupted as error:
                sys.exit(f"Stopped: {error}")


def status(_: argparse.Namespace) -> None:
    """Print which methods of which cases are complete."""
    for case in CASES:
        left: list[Any] = missing(case)
        print(f"{case.name:45} {'complete' if not left else 'missing: ' + ', '.join(left)}")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run")
    for data in DATA_SETS:
        running.add_argument(f"--{data.name}", type=Path, metavar="FOLDER", help=f"the folder of {data.title}")
    running.add_argument("--minutes", type=float)
    running.add_argument("--only")
    running.set_defaults(call=run)
    commands.add_parser("status").set_defaults(call=status)
    commands.add_parser("report").set_defaults(call=lambda _: write_report(CASES))
    given = parser.parse_args()
    given.call(given)


if __name__ == "__main__":
    main()
