"""How much a student gains from images without labels, on Fashion-MNIST and CIFAR-10.

    python studies/unlabelled/study.py run [--fashion-mnist FOLDER] [--cifar10 FOLDER] [--minutes N]
        [--only NAME,NAME] [--methods NAME,NAME] [--work-dir DIR]
    python studies/unlabelled/study.py status
    python studies/unlabelled/study.py report

``run`` takes the cases of cases.py in their order, one method after the other and of each method one seed after the
other, and adds each student to ``records/<case>.json``. It stops after the given time; the same command resumes. The
teachers are stored in ``teachers/``, so that another machine continues with the same ones. The folders have the files
of the data sets; the cases of a data set without a folder are left out. Several processes may run at the same time,
each with other cases or methods and with its own work dir. ``report`` writes README.md, its picture and the tables of
other pages from the records; a method stands there when all its seeds are complete.
"""

import argparse
import os
import shutil
import signal
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # so that its own modules come before those of other studies

import torch
from filelock import FileLock
from rich.console import Console

from cases import CASES, DATA_SETS, Case, DataSet, given_teacher
from factor_transfer.commands.compare import ThisProcess, score
from factor_transfer.config.read import read_recipe
from factor_transfer.errors import Interrupted
from factor_transfer.export.record import machine
from factor_transfer.pipeline.artefact import WEIGHTS
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.stages.teacher import make_teacher
from record import add_run, missing
from results import write_report

TEACHERS = Path(__file__).parent / "teachers"
WORK = Path("runs/unlabelled")


def run_student(
    case: Case, method: str, seed: int, folder: Path, work: Path, console: Console, more: Sequence[str] = ()
) -> None:
    """Train a student, and add it to the record of its case.

    Args:
        case: the case.
        method: the method.
        seed: the seed of the student.
        folder: the folder of the data set.
        work: the folder of all work dirs.
        console: where progress is shown.
        more: further changes of the recipe.
    """
    changes = [*case.settings, f"name={case.name}", *more]
    if not case.data.pretrained:
        changes.append(given_teacher(_provided_teacher(case, folder, work, console)))
    experiment = _experiment(case.data, changes, folder, work / case.name, console)
    (new,) = ThisProcess().runs(experiment, [method], [seed], score)
    device = {"device": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    WORK.mkdir(parents=True, exist_ok=True)
    with FileLock(WORK / f".{case.name}.lock"):  # other methods may end at the same time
        add_run(case, experiment, new, {"precision": experiment.precision, "machine": machine(), **device})


def _provided_teacher(case: Case, folder: Path, work: Path, console: Console) -> Path:
    """The weights of a case's teacher, which is trained first if no machine has trained it."""
    # A case with unlabelled images and the one without have the same labelled images, and so the same teacher.
    alone = replace(case, unlabelled=False)
    changes = [*alone.settings, f"name={alone.name}"] if case.own_teacher else ["name=teacher"]
    place = TEACHERS / (f"{case.labels}-labels" if case.own_teacher else "all-labels")
    if not place.is_dir():
        done = make_teacher(_experiment(case.data, changes, folder, work / f"teacher-{place.name}", console))
        shutil.copytree(done.folder, place, ignore=shutil.ignore_patterns("*.ckpt*"))
    return place / WEIGHTS


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
        for method, seed in missing(case):
            if given.methods and method not in given.methods.split(","):
                continue
            console.print(f"{case.name}  {method}, seed {seed}", highlight=False)
            try:
                run_student(case, method, seed, folder, given.work_dir, console, given.set)
            except Interrupted as error:
                sys.exit(f"Stopped: {error}")


def status(_: argparse.Namespace) -> None:
    """Print which students of which cases are missing."""
    for case in CASES:
        left = Counter(method for method, _ in missing(case))
        words = ", ".join(f"{count} × {method}" for method, count in left.items())
        print(f"{case.name:45} {'complete' if not left else 'missing: ' + words}")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run")
    for data in DATA_SETS:
        running.add_argument(f"--{data.name}", type=Path, metavar="FOLDER", help=f"the folder of {data.title}")
    running.add_argument("--minutes", type=float)
    running.add_argument("--only", metavar="NAME,NAME", help="these cases")
    running.add_argument("--methods", metavar="NAME,NAME", help="these methods")
    running.add_argument("--work-dir", type=Path, default=WORK, help=f"[default: {WORK}]")
    running.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="change all recipes, to try the script in a clone"
    )
    running.set_defaults(call=run)
    commands.add_parser("status").set_defaults(call=status)
    commands.add_parser("report").set_defaults(call=lambda _: write_report(CASES))
    given = parser.parse_args()
    given.call(given)


if __name__ == "__main__":
    main()
