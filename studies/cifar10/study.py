"""Run the study of Factor Transfer on CIFAR-10, piece by piece.

    python studies/cifar10/study.py small --data data            # two CPU cores, two hours
    python studies/cifar10/study.py full --data data --minutes 9 # one GPU; again, until it says that all is done

Each piece leaves a record in `records/`; a piece that has one is not run again, and one that was stopped goes on. When
all are done, `report.py` writes the tables and the pictures.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from factor_transfer.cli.exit import ending
from factor_transfer.distributed.signals import defer_signals
from factor_transfer.errors import InputError, suggest
from pieces import Piece, Place, pieces
from plan import HERE, STUDIES
from tasks import run

# One epoch of everything, on few images: whether it runs, not what it gives.
TRIAL = (
    "teacher.epochs=1",
    "teacher.schedule=constant",
    "teacher.batch_size=16",  # so that its batch norms see a few batches, and stay near what they were
    "teacher.learning_rate=0.001",
    "paraphraser.learning_rate=0.001",
    "paraphraser.epochs=1",
    "student.epochs=1",
    "student.schedule=constant",
    "data.limit=256",
    "data.validation=0.25",
    "cache.views=1",
    "precision=32-true",
    "compile=off",
)


def main(words: Sequence[str] | None = None) -> None:
    """Run what is not done yet; ``words`` of the command line, if they are not this process's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder of CIFAR-10")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/study-cifar10"))
    parser.add_argument("--only", nargs="+", default=[], metavar="PIECE", help="these alone, or those in such a folder")
    parser.add_argument("--list", action="store_true", help="show the pieces, and what is done")
    parser.add_argument("--jobs", type=int, default=1, help="students that are trained at the same time")
    parser.add_argument("--minutes", type=float, help="stop after so many; the same command goes on")
    parser.add_argument(
        "--trial", action="store_true", help="one epoch of everything, on few images, in a work dir apart"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args(words)
    with ending(arguments.debug):
        _study(arguments)


def _study(arguments: argparse.Namespace) -> None:
    if arguments.jobs < 1:
        raise InputError(f"--jobs must be at least 1, got {arguments.jobs}")
    if arguments.minutes is not None and not arguments.minutes > 0:
        raise InputError(f"--minutes must be more than 0, got {arguments.minutes:g}")
    work = arguments.work_dir / (f"{arguments.study}-trial" if arguments.trial else arguments.study)
    records = work / "records" if arguments.trial else HERE / "records" / arguments.study
    changes = (f"data.root={arguments.data.resolve()}",)
    place = Place(work, records, changes, TRIAL if arguments.trial else (), Console())
    wanted = _wanted(arguments)
    if arguments.list:
        for piece in wanted:
            place.say(f"{_state(piece, place):8}  {piece.name}")
        return
    if arguments.minutes is not None:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        signal.setitimer(signal.ITIMER_REAL, arguments.minutes * 60)
    together: list[Piece] = []
    for piece in [piece for piece in wanted if not piece.is_done(place)]:
        if piece.task == "students" and arguments.jobs > 1:
            together.append(piece)
            continue
        _together(together, arguments, place)
        place.console.rule(piece.name, align="left")
        run(piece, place)
    _together(together, arguments, place)
    place.say(f"All of {len(wanted)} pieces are done; their records are in {records}")


def _state(piece: Piece, place: Place) -> str:
    if not piece.record(place).is_file():
        return ""
    return "outdated" if piece.outdated(place) else "done"


def _wanted(arguments: argparse.Namespace) -> list[Piece]:
    everything = list(pieces(arguments.study))
    for name in arguments.only:
        if not any(_within(piece.name, name) for piece in everything):
            raise InputError(f"there is no piece {name!r}{suggest(name, [piece.name for piece in everything])}")
    return [piece for piece in everything if not arguments.only or any(_within(piece.name, n) for n in arguments.only)]


def _within(piece: str, name: str) -> bool:
    return piece == name or piece.startswith(f"{name}/")


def _together(waiting: list[Piece], arguments: argparse.Namespace, place: Place) -> None:
    """Run pieces that do not need each other, each in a process of its own; ``waiting`` is empty afterwards."""
    running: dict[subprocess.Popen[bytes], Piece] = {}
    try:
        while waiting or running:
            while waiting and len(running) < arguments.jobs:
                piece = waiting.pop(0)
                place.say(f"{piece.name} begins")
                running[_process(piece, arguments, place)] = piece
            time.sleep(0.2)
            for process in [process for process in running if process.poll() is not None]:
                piece = running.pop(process)
                if process.returncode:
                    raise InputError(f"{piece.name} failed; {_log(piece, place)} has its output")
                place.say(f"{piece.name} is done")
    finally:
        for process in running:
            process.terminate()
        with defer_signals():  # each writes down where it is; an impatient Ctrl-C does not keep it from that
            for process in running:
                process.wait()


def _process(piece: Piece, arguments: argparse.Namespace, place: Place) -> subprocess.Popen[bytes]:
    """A piece alone, by this same command; its threads are its share of the processors."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, processors // arguments.jobs))}
    command = [sys.executable, __file__, arguments.study, "--only", piece.name, "--data", str(arguments.data)]
    command += ["--work-dir", str(arguments.work_dir), *(["--trial"] if arguments.trial else [])]
    log = _log(piece, place)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        # A session of its own: a Ctrl-C reaches it once, from here.
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)


def _log(piece: Piece, place: Place) -> Path:
    return place.work / "logs" / f"{piece.name}.log"


if __name__ == "__main__":
    main()
