"""How much a student gains from images without labels, on Fashion-MNIST.

    python studies/unlabelled/study.py run --data FOLDER [--minutes N] [--only NAME,NAME]
    python studies/unlabelled/study.py status
    python studies/unlabelled/study.py report

``run`` takes the cases of plan.py in their order, one method after the other, and writes ``records/<case>.json`` after
each method. It stops after the given time; the same command resumes. The teacher that all cases with a given teacher
share is trained first and stored in ``teacher/``, so that another machine continues with the same one. ``report``
writes README.md from the records. FOLDER has the four files of Fashion-MNIST.
"""

import argparse
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # so that its own modules come before those of other studies

import torch
from cases import CASES, SEEDS, Case, given_teacher
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
RECIPE, RECORDS, TEACHER = HERE / "recipe.toml", HERE / "records", HERE / "teacher"
WORK = Path("runs/unlabelled")


def record_of(case: Case) -> Path:
    """The file of a case's record."""
    return RECORDS / f"{case.name}.json"


def missing(case: Case) -> list[str]:
    """The methods of a case that are not in its record."""
    done = read_json(record_of(case))["methods"] if record_of(case).exists() else {}
    return [method for method in case.methods if method not in done]


def run_case(case: Case, methods: list[str], data: Path, work: Path, console: Console) -> None:
    """Compare some methods, and write the record."""
    changes = [*case.settings, f"name={case.name}"]
    if not case.own_teacher:
        _provide_teacher(data, work, console)
        changes.append(given_teacher(TEACHER / "weights.safetensors"))
    experiment = _experiment(changes, data, work / case.name, console)
    compare(experiment, methods, SEEDS)
    comparison = read_json(work / case.name / COMPARISON)
    described = {"settings": case.settings, "precision": experiment.precision, "machine": machine()}
    write_json(record_of(case), {**described, **comparison})


def _provide_teacher(data: Path, work: Path, console: Console) -> None:
    if TEACHER.is_dir():
        return
    done = make_teacher(_experiment(["name=teacher"], data, work / "teacher", console))
    shutil.copytree(done.folder, TEACHER, ignore=shutil.ignore_patterns("*.ckpt*"))


def _experiment(changes: list[str], data: Path, place: Path, console: Console) -> Experiment:
    recipe = read_recipe(RECIPE, [*changes, f"data.root={data.resolve()}", "precision=auto", "compile=off"])
    return Experiment(recipe, place, console, str(RECIPE))


def run(given: argparse.Namespace) -> None:
    """Run the cases until all are complete, or the time is over."""
    torch.set_num_threads(1)
    console = Console()
    if given.minutes:
        timer = threading.Timer(60 * given.minutes, lambda: os.kill(os.getpid(), signal.SIGTERM))
        timer.daemon = True
        timer.start()
    for case in CASES:
        if given.only and case.name not in given.only.split(","):
            continue
        for method in missing(case):
            methods = case.methods[: case.methods.index(method) + 1]
            console.print(f"{case.name}  {method}", highlight=False)
            try:
                run_case(case, list(methods), given.data, WORK, console)
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
    running.add_argument("--data", type=Path, required=True)
    running.add_argument("--minutes", type=float)
    running.add_argument("--only")
    running.set_defaults(call=run)
    commands.add_parser("status").set_defaults(call=status)
    commands.add_parser("report").set_defaults(call=lambda _: write_report(CASES, RECORDS, HERE / "README.md"))
    given = parser.parse_args()
    given.call(given)


if __name__ == "__main__":
    main()
