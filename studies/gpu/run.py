"""What a borrowed GPU is used for: its tests, benchmarks, and the pieces of the CIFAR-10 study that need one.

    python studies/gpu/run.py check --out DIR
    python studies/gpu/run.py train --out DIR --data data --fashion-mnist FOLDER --minutes 8 [--jobs 12]
        [--only NAME ...]

`check` takes about two minutes. `train` runs pieces of the CIFAR-10 study and of the study of images without labels, in
several processes with `--jobs`; it stops by itself in time, and a second call resumes what the first one left. Whatever
is finished is in `DIR/results.tar`: the records and the weights for the zoo. Nothing is compiled, which takes about as
long as it saves in a few minutes. With `--small`, all trainings are of one epoch, and most of a few hundred images: to
try the script on a CPU, in a clone, whose records are thrown away.

Small networks leave most of a large GPU idle. Several processes share it by NVIDIA's Multi-Process Service, where that
is installed; without it they take turns.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "unlabelled"))
sys.path.insert(0, str(Path(__file__).parents[1] / "cifar10"))

import record as unlabelled
from cases import CASES
from runner import WORK, missing, record_of
from study import chosen

ROOT = Path(__file__).parents[2]
STUDY, UNLABELLED = ROOT / "studies" / "cifar10", ROOT / "studies" / "unlabelled"
ONLY = ("authors", "levers", "best", "unlabelled")  # of small networks, which can share a GPU
BENCHMARKS = (
    ("--pair", "resnet50-resnet18", "--batch", "512", "--compile", "off"),
    ("--pair", "resnet56-resnet20", "--batch", "128", "--compile", "off"),
    ("--pair", "resnet56-resnet20", "--batch", "128", "--compile", "on"),
)
SMALL = (
    *(f"{stage}.epochs=1" for stage in ("teacher", "paraphraser", "student")),
    *(f"{stage}.batch_size=64" for stage in ("teacher", "paraphraser", "student")),
    *("data.limit=256", "cache.views=1"),
)
SMALL_UNLABELLED = ("student.epochs=1", "paraphraser.epochs=1", "cache.views=1")
SMALL_BENCHMARKS = (("--pair", "resnet8-resnet8", "--batch", "32", "--compile", "off"),)


def check(out: Path, small: bool) -> None:
    """Run the tests that need a GPU, and the benchmark of a training step."""
    # The last benchmark compiles networks, which takes a minute; the test of that is left out here.
    tests = ["tests/test_gpu.py", "-k", "not compiled", "-o", "filterwarnings=default", "-p", "no:cacheprovider"]
    run(["-m", "pytest", "-q", *tests], out / "tests.log")
    for number, words in enumerate(SMALL_BENCHMARKS if small else BENCHMARKS):
        path = out / f"step-{words[1]}-{number}.json"
        rounds = "2" if small else "7"
        run(["benchmarks/step.py", *words, "--rounds", rounds, "--json", str(path)], path.with_suffix(".log"))


def run(words: list[str], log: Path) -> None:
    """Run Python in the checkout, show the end of what it prints, and write all of it to a log."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    log.write_text(done.stdout + done.stderr, encoding="utf-8")
    print("\n".join((done.stdout + done.stderr).splitlines()[-25:]))
    print(f"{log.name}: exit code {done.returncode} after {time.monotonic() - began:.0f} s", flush=True)


@dataclass(frozen=True)
class Task:
    """One command of a study, which has a process of its own.

    Attributes:
        name: the name of its log.
        words: the script and its arguments.
    """

    name: str
    words: tuple[str, ...]


def next_tasks(only: Sequence[str], data: Path, fashion_mnist: Path, small: bool) -> Iterator[Task]:
    """The tasks that can be run now and whose records are missing, in the order in which they are named.

    Args:
        only: groups and pieces of the CIFAR-10 study, and ``"unlabelled"``, the study of images without labels.
        data: the folder of CIFAR-10.
        fashion_mnist: the folder of Fashion-MNIST.
        small: whether all trainings are as short as possible.
    """
    changes = ("--set", *SMALL) if small else ()
    for name in only:
        if name == "unlabelled":
            yield from _unlabelled(data, fashion_mnist, small)
            continue
        # Students of the same seed have different paraphrasers, so that processes seldom wait for the same one.
        for piece in sorted(chosen([name]), key=lambda one: one.seed):
            if not record_of(piece).is_file() and not missing(piece, WORK):
                words = ("run", "--data", str(data), "--threads", "2", "--compile", "off", "--only", piece.name)
                yield Task(piece.name.replace("/", "-"), (str(STUDY / "study.py"), *words, *changes))


def _unlabelled(data: Path, fashion_mnist: Path, small: bool) -> Iterator[Task]:
    """The tasks of the study of images without labels: of each case, one method or those that share a paraphraser."""
    changes = ("--set", *SMALL_UNLABELLED) if small else ()
    parts = {
        (case, ("factor", "factor+kd") if "factor" in method else (method,))
        for case in CASES
        for method, _ in unlabelled.missing(case)
    }
    for case, methods in sorted(parts, key=lambda part: (-len(part[1]), part[0].name)):  # the longest ones first
        place = f"{case.name}-{methods[0]}"
        words = ("run", "--fashion-mnist", str(fashion_mnist), "--cifar10", str(data), "--only", case.name)
        words += ("--methods", ",".join(methods), "--work-dir", f"runs/unlabelled-{place}")
        yield Task(place, (str(UNLABELLED / "study.py"), *words, *changes))


def train(out: Path, find: Callable[[], Iterable[Task]], minutes: float, jobs: int) -> None:
    """Run tasks side by side until all are done or the time is over, and collect what is finished.

    Args:
        out: the folder of the logs and of ``results.tar``.
        find: the tasks that can be run now; others may follow when some are done.
        minutes: the time.
        jobs: the number of processes.
    """
    began = time.monotonic()
    started: set[str] = set()
    running: dict[Task, subprocess.Popen[bytes]] = {}
    with shared_gpu() as service:
        while True:
            left = minutes - (time.monotonic() - began) / 60
            # A task is started only if there is time to train something.
            found = (task for task in find() if task.name not in started) if left > 0.5 else iter(())
            for task in islice(found, jobs - len(running)):
                started.add(task.name)
                words = [sys.executable, *task.words, "--minutes", str(left)]
                environment = os.environ | service | {"OMP_NUM_THREADS": "2"}
                with (out / f"{task.name}.log").open("w") as file:
                    running[task] = subprocess.Popen(words, cwd=ROOT, stdout=file, stderr=file, env=environment)
            if not running:
                break
            # Until a task ends, no place becomes free, and no other task can be run.
            while not (ended := [task for task, process in running.items() if process.poll() is not None]):
                time.sleep(1)
            for task in ended:
                code = running.pop(task).returncode
                print(f"{time.monotonic() - began:4.0f} s  {task.name}: exit code {code}", flush=True)
            collect(out / "results.tar")


@contextmanager
def shared_gpu() -> Iterator[Mapping[str, str]]:
    """The environment of processes whose small kernels run side by side on one GPU.

    https://docs.nvidia.com/deploy/mps
    """
    program = shutil.which("nvidia-cuda-mps-control")
    with tempfile.TemporaryDirectory() as folder:
        places = {f"CUDA_MPS_{name}_DIRECTORY": folder for name in ("PIPE", "LOG")}
        try_it = [sys.executable, "-c", "import torch; torch.zeros(1).cuda()"]
        environment = os.environ | places
        if program is None or subprocess.run([program, "-d"], env=environment, check=False).returncode:
            print("the Multi-Process Service is not available", flush=True)
            yield {}
            return
        works = subprocess.run(try_it, env=environment, check=False, timeout=60).returncode == 0
        print(f"the Multi-Process Service {'runs' if works else 'does not run'}", flush=True)
        try:
            yield places if works else {}
        finally:
            subprocess.run([program], input="quit\n", text=True, env=environment, check=False, timeout=60)


def collect(path: Path) -> None:
    """Pack the records and the zoo; the file that is there is replaced when the new one is whole."""
    partial = path.with_suffix(".partial")
    with tarfile.open(partial, "w") as tar:
        for folder in (STUDY / "records", UNLABELLED / "records", UNLABELLED / "teachers", ROOT / "zoo"):
            tar.add(folder, folder.relative_to(ROOT))
    partial.replace(path)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["check", "train"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="the folder of CIFAR-10  [default: data]")
    parser.add_argument("--fashion-mnist", type=Path, default=ROOT / "data" / "fashion-mnist", metavar="FOLDER")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--jobs", type=int, default=12, help="processes side by side  [default: 12]")
    parser.add_argument("--only", nargs="+", default=list(ONLY), metavar="NAME", help=f"[default: {' '.join(ONLY)}]")
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if given.command == "check":
        check(out, given.small)
    else:
        find = partial(next_tasks, given.only, given.data.resolve(), given.fashion_mnist.resolve(), given.small)
        train(out, find, given.minutes, given.jobs)


if __name__ == "__main__":
    main()
