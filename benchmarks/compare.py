"""How long a whole comparison takes: methods and seeds one after the other, side by side, in bfloat16, and before.

    python benchmarks/compare.py [--recipe NAME] [--seeds 3] [--rounds 1] [--before PATH] [--skip ROW]
                                 [--json FILE] [KEY=VALUE ...]

Each row is one `factor-transfer compare` of seven methods in a process and a work dir of its own, timed from its start
to its end: teacher, paraphraser, cache, all students and their evaluation. `one process` has all threads (`--jobs 1`),
`side by side` is the default, one process of one thread per processor. `before` is the default of another checkout
(`--before`), which must know the recipe. Rows take turns; ratios within one run mean something. Run it on an idle
machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

METHODS = "student,kd,fitnets,at,factor,factor+kd,at+kd"
SOURCE = Path(__file__).parents[1] / "src"
SHORT = ["teacher.epochs=2", "paraphraser.epochs=1", "student.epochs=1"]


def seconds(source: Path, words: list[str]) -> float:
    """The duration of a comparison by the package in a folder."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "factor_transfer", "compare", *words, "--work-dir", f"{folder}/work"]
        began = time.perf_counter()
        done = subprocess.run(
            command,
            env={**environment, "PYTHONPATH": str(source)},
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
        return time.perf_counter() - began


def main() -> None:
    """Time all, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="fashion-mnist/resnet20-resnet8")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--skip", action="append", default=[], metavar="ROW", help="leave out rows that begin so")
    parser.add_argument("--before", type=Path, help="the root of another checkout")
    parser.add_argument("--json", type=Path)
    parser.add_argument("settings", nargs="*", default=SHORT, metavar="KEY=VALUE", help="of the recipe")
    given = parser.parse_intermixed_args()
    processors = len(os.sched_getaffinity(0))
    recipe = str(Path(given.recipe).resolve()) if Path(given.recipe).is_file() else given.recipe
    words = [recipe, *given.settings, "--methods", given.methods, "--seeds", str(given.seeds)]
    all_threads = ["--jobs", "1", f"threads={processors}"]
    rows = {
        "one process, float32": (SOURCE, [*words, "precision=32-true", *all_threads]),
        "one process, bfloat16": (SOURCE, [*words, "precision=bf16-mixed", *all_threads]),
        "side by side, float32": (SOURCE, [*words, "precision=32-true"]),
        "side by side, bfloat16": (SOURCE, [*words, "precision=bf16-mixed"]),
    }
    if given.before is not None:
        rows = {"before": (given.before.resolve() / "src", [*words, "precision=32-true"]), **rows}
    rows = {name: row for name, row in rows.items() if not name.startswith(tuple(given.skip))}
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(given.rounds):
        for name, row in rows.items():
            times[name].append(seconds(*row))
            print(f"{name}  {times[name][-1]:.1f} s", flush=True)
    typical = {name: statistics.median(values) for name, values in times.items()}
    first = next(iter(rows))
    result = {
        "recipe": given.recipe,
        "settings": given.settings,
        "methods": given.methods,
        "seeds": given.seeds,
        "rounds": given.rounds,
        "processors": processors,
        "seconds": times,
        "ratios": {name: typical[first] / value for name, value in typical.items()},
    }
    print(
        f"{given.recipe}, {' '.join(given.settings)}; {len(given.methods.split(','))} methods, {given.seeds} seeds, "
        f"{processors} processors; median of {given.rounds} rounds"
    )
    for name, value in typical.items():
        print(f"{name:24} {value:7.1f} s  {result['ratios'][name]:.2f} times as fast as {first}")  # type: ignore[index]
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
