"""The study of Factor Transfer on CIFAR-10, in pieces that leave a record each.

    python studies/cifar10/study.py run --data data [--minutes N] [--threads 1] [--only NAME ...]
    python studies/cifar10/study.py status
    python studies/cifar10/study.py report

`run` takes the next pieces in their order, and stops by itself after N minutes; SIGTERM and Ctrl-C stop it, too. What a
training has reached is kept in its work dir, and the same command resumes it. Several processes may run pieces at the
same time. A piece that is done has a file in `records/`, and is not run again. `report` writes README.md and pictures.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from rich.console import Console

from factor_transfer.cli.exit import report_errors
from factor_transfer.distributed.device import find_device
from factor_transfer.distributed.precision import fast_precision
from factor_transfer.errors import InputError, suggest
from plan import Piece, pieces
from report import write_report
from runner import WORK, check_data, is_done, missing, record_of, run


def chosen(only: Sequence[str], changes: Sequence[str] = ()) -> list[Piece]:
    """The pieces of some groups, or those of some names, in the order in which they are named.

    Args:
        only: the names; all pieces, if there are none.
        changes: further overrides of each piece, ``KEY=VALUE``.

    Raises:
        InputError: there is no such group or piece.
    """
    everything = [replace(piece, overrides=(*piece.overrides, *changes)) for piece in pieces()]
    groups = [*(piece.group for piece in everything), "best"]  # which has no pieces before all levers are compared
    known = list(dict.fromkeys([*groups, *(piece.name for piece in everything)]))
    for name in only:
        if name not in known:
            raise InputError(f"there is no group or piece {name!r}{suggest(name, known)}")
    named = [piece for name in only for piece in everything if name in (piece.group, piece.name)]
    return list(dict.fromkeys(named)) if only else everything


def run_all(some: Sequence[Piece], work: Path, data: Path, speed: Mapping[str, str], console: Console) -> None:
    """Run the pieces that have no record, in their order, as far as what they need is there."""
    check_data(data)
    work.mkdir(parents=True, exist_ok=True)
    # Those that wait for a piece that another process is running have their turn when it is done.
    while run_once(some, work, data, speed, console):
        time.sleep(1)


def run_once(some: Sequence[Piece], work: Path, data: Path, speed: Mapping[str, str], console: Console) -> bool:
    """Run each of the pieces that can be run; whether others wait for pieces that another process is running."""
    busy: set[str] = set()
    waiting: list[Piece] = []
    for piece in some:
        if is_done(piece, work):
            continue
        if missing(piece, work):
            waiting.append(piece)
            continue
        lock = FileLock(work / f".{piece.name.replace('/', '-')}.lock", timeout=0)
        try:
            with lock:
                if is_done(piece, work):
                    continue
                console.rule(piece.name, align="left")
                record = run(piece, work, data, speed, console)
                figures = record.get("test") or record.get("validation") or {}
                reached = f"top-1 {figures['top1']:.2f}" if "top1" in figures else record.get("error", "done")
                console.print(f"{piece.name}  {reached}  {record_of(piece)}", highlight=False, soft_wrap=True)
        except Timeout:  # another process runs it
            busy.add(piece.name)
    needed = [missing(piece, work) for piece in waiting]
    return any(not needs or busy & set(needs) for needs in needed)


def status(only: Sequence[str], work: Path, console: Console) -> None:
    """Print what is done, what comes next, and about how long it takes on one core."""
    left = 0.0
    for piece in chosen(only):
        done, needs = is_done(piece, work), missing(piece, work)
        state = "done" if done else f"needs {', '.join(needs)}" if needs else "next"
        left += 0 if done else piece.minutes
        console.print(f"{piece.name:40} {state}", highlight=False, soft_wrap=True)
    console.print(f"About {left / 60:.0f} hours of one core are left.", highlight=False)


def main(words: Sequence[str] | None = None) -> None:
    """Run the command that ``words`` give, or the command line of this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "status", "report"])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="groups (small, levers, …) or pieces")
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder of CIFAR-10  [default: data]")
    parser.add_argument("--work-dir", type=Path, default=WORK, help=f"[default: {WORK}]")
    parser.add_argument("--minutes", type=float, help="stop after this many minutes")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch  [default: 1]")
    parser.add_argument("--precision", choices=["auto", "32-true", "bf16-mixed"], default="auto")
    parser.add_argument("--compile", choices=["auto", "on", "off"], default="auto")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="change all recipes, to try the script in a clone"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    given = parser.parse_args(words)
    console = Console() if sys.stdout.isatty() else Console(width=160)
    with report_errors(given.debug):
        if given.threads < 1 or (given.minutes is not None and not given.minutes > 0):
            raise InputError("--threads must be at least 1, and --minutes more than 0")
        if given.command == "status":
            status(given.only, given.work_dir, console)
        elif given.command == "report":
            for path in write_report():
                console.print(f"written  {path}", highlight=False, soft_wrap=True)
        else:
            torch.set_num_threads(given.threads)
            if given.minutes is not None:
                signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
                signal.setitimer(signal.ITIMER_REAL, 60 * given.minutes)
            precision = fast_precision(find_device("auto")) if given.precision == "auto" else given.precision
            speed = {"precision": precision, "compile": given.compile, "threads": str(given.threads)}
            run_all(chosen(given.only, given.set), given.work_dir, given.data, speed, console)


if __name__ == "__main__":
    main()
