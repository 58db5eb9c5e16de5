"""What a borrowed GPU is used for: its tests, benchmarks, and the pieces of the CIFAR-10 study that need one.

    python studies/gpu/run.py check --out DIR
    python studies/gpu/run.py train --out DIR --data data --minutes 8 [--jobs 1] [--only NAME ...]

`check` takes about two minutes. `train` runs the study's pieces, in several processes with `--jobs`; it stops by itself
in time. Whatever is finished by then is in `DIR/results.tar`:
the records, the weights for the zoo, and the logs. With `--small`, all trainings are of one epoch of a few hundred
images: to try the script on a CPU, in a clone, whose records are thrown away.
"""

import argparse
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "studies" / "cifar10"
# The pair that nothing but a GPU can train comes first.
PIECES = ("seed/teacher", "seed/paraphraser", "seed/factor-seed0", "seed", "authors")
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


def train(out: Path, data: Path, minutes: float, jobs: int, only: list[str], small: bool) -> None:
    """Run the study's processes until all pieces are done or the time is over, and collect what is finished."""
    command = [sys.executable, str(STUDY / "study.py"), "run", "--data", str(data), "--threads", "2"]
    # Compiling takes about as long as it saves in a few minutes.
    command += ["--compile", "off", "--minutes", str(minutes), "--only", *only] + (["--set", *SMALL] if small else [])
    logs = [out / f"process-{number}.log" for number in range(jobs)]
    running = []
    for log in logs:
        with log.open("w") as file:
            environment = os.environ | {"OMP_NUM_THREADS": "2"}
            running.append(subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=environment))
        time.sleep(0.5)  # so that they take the pieces in their order
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
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side  [default: 1]")
    parser.add_argument("--only", nargs="+", default=list(PIECES), metavar="NAME")
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if given.command == "check":
        check(out, given.small)
    else:
        train(out, given.data.resolve(), given.minutes, given.jobs, given.only, given.small)


if __name__ == "__main__":
    main()
