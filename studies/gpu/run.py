"""What a borrowed GPU is used for: its tests, benchmarks, and the pieces of the CIFAR-10 study that need one.

    python studies/gpu/run.py check --out DIR
    python studies/gpu/run.py train --out DIR --data data --minutes 8 [--jobs 12] [--compile off] [--only NAME ...]

`check` takes about two minutes. `train` runs the study's pieces, in several processes with `--jobs`; it stops by itself
in time, and a second call resumes what the first one left. Whatever is finished is in `DIR/results.tar`: the records
and the weights for the zoo. With `--small`, all trainings are of one epoch of a few hundred images: to try the script
on a CPU, in a clone, whose records are thrown away.

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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "cifar10"))

from runner import record_of
from study import chosen

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "studies" / "cifar10"
PIECES = ("authors", "levers")  # of small networks, which can share a GPU
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


def train(out: Path, data: Path, minutes: float, jobs: int, only: list[str], more: list[str]) -> None:
    """Run the study's processes until all pieces are done or the time is over, and collect what is finished."""
    # Students of the same seed have different paraphrasers, so that processes seldom wait for the same one.
    names = [piece.name for piece in sorted(chosen(only), key=lambda one: one.seed) if not record_of(piece).is_file()]
    if not names:
        print("all of these pieces have records", flush=True)
        return
    command = [sys.executable, str(STUDY / "study.py"), "run", "--data", str(data), "--threads", "2"]
    command += ["--minutes", str(minutes), *more, "--only"]
    logs = [out / f"process-{number}.log" for number in range(jobs)]
    with shared_gpu() as service:
        running = []
        for number, log in enumerate(logs):
            start = number % len(names)
            words = [*command, *names[start:], *names[:start]]
            environment = os.environ | service | {"OMP_NUM_THREADS": "2"}
            with log.open("a") as file:
                done = subprocess.Popen(words, cwd=ROOT, stdout=file, stderr=file, env=environment)
            running.append(done)
        before: set[Path] = set()
        while True:
            ended = all(process.poll() is not None for process in running)
            records = set(STUDY.glob("records/**/*.json"))
            if ended or records != before:
                collect(out / "results.tar")
                before = records
            if ended:
                break
            time.sleep(2)
    for log in logs:
        print(f"--- {log.name}")
        print("\n".join(log.read_text(encoding="utf-8").splitlines()[-6:]), flush=True)


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
        tar.add(STUDY / "records", "studies/cifar10/records")
        tar.add(ROOT / "zoo", "zoo")
    partial.replace(path)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["check", "train"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="the folder of CIFAR-10  [default: data]")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--jobs", type=int, default=12, help="processes side by side  [default: 12]")
    # Compiling takes about as long as it saves in a few minutes.
    parser.add_argument("--compile", choices=["auto", "on", "off"], default="off", help="[default: off]")
    parser.add_argument("--only", nargs="+", default=list(PIECES), metavar="NAME")
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if given.command == "check":
        check(out, given.small)
    else:
        more = ["--compile", given.compile, *(["--set", *SMALL] if given.small else [])]
        train(out, given.data.resolve(), given.minutes, given.jobs, given.only, more)


if __name__ == "__main__":
    main()
