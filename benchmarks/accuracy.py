"""What a setting that makes training faster costs in accuracy: the same recipe with several values of it.

    python benchmarks/accuracy.py RECIPE [KEY=VALUE ...] --vary cache.views=none,4,8,16 [--methods student,factor]
                                  [--seeds 3] [--paraphrasers 1] [--work-dir DIR] [--json FILE]

For each value, the students of all methods and seeds are trained as in `compare`; "none" leaves the setting out. With
several paraphrasers, this is repeated for as many seeds of the paraphraser, with other seeds of the students. Stages
that do not depend on the setting are made once, and a second call reuses what the first one trained. Figures are top-1
of the last epoch on the test split, and differences from the first value, paired by both seeds. The recipe's settings
were chosen without the test split.
"""

import argparse
import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from factor_transfer.commands.compare import Runner, ThisProcess, score
from factor_transfer.commands.jobs import ProcessJobs, default_jobs
from factor_transfer.config.read import read_recipe
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.stages.stage import in_work_dir
from factor_transfer.report.confidence import estimate

Runs = dict[str, list[dict[str, Any]]]  # the students of each value


def main() -> None:
    """Train all students, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--vary", required=True, metavar="KEY=VALUE,...")
    parser.add_argument("--methods", default="student,factor", metavar="NAMES")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--paraphrasers", type=int, default=1, metavar="N")
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/accuracy"), metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_intermixed_args()
    key, _, values = given.vary.partition("=")
    methods, console = given.methods.split(","), Console()
    results: Runs = {}
    for value, paraphraser in product(values.split(","), range(given.paraphrasers)):
        overrides = [*given.overrides, *([] if value == "none" else [f"{key}={value}"])]
        work_dir = given.work_dir / f"{key}={value}"
        if paraphraser:
            overrides += [f"paraphraser.seed={paraphraser}", f"student.seed={paraphraser * given.seeds}"]
            work_dir = work_dir.with_name(f"{work_dir.name}, paraphraser {paraphraser}")
        teacher = next(iter(given.work_dir.glob("*/teacher")), None)
        if teacher is not None and not work_dir.exists():  # reused if it is the same for this value
            work_dir.mkdir()
            shutil.copy(teacher.parent / "recipe.json", work_dir)
            shutil.copytree(teacher, work_dir / "teacher")
        experiment = Experiment(read_recipe(given.recipe, overrides), work_dir, console, given.recipe)
        jobs = default_jobs(experiment)
        runner = ProcessJobs(jobs) if jobs > 1 else ThisProcess()
        results.setdefault(value, []).extend(trained(experiment, methods, given.seeds, runner))
    console.print(as_table(key, methods, results))
    if given.json:
        record = {"recipe": given.recipe, "overrides": given.overrides, "setting": key, "runs": results}
        given.json.write_text(json.dumps(record, indent=1) + "\n")


@in_work_dir
def trained(experiment: Experiment, methods: list[str], seeds: int, runner: Runner) -> list[dict[str, Any]]:
    """The records of the students of all methods and seeds."""
    first = experiment.recipe.student.seed
    return runner.runs(experiment, methods, range(first, first + seeds), score)


def as_table(key: str, methods: list[str], results: Runs) -> Table:
    """Mean ± 95 % interval over the seeds, and the differences from the first value, seed by seed."""
    first = next(iter(results))
    table = Table(key, *methods, *(f"{method}, against {first}" for method in methods))
    by = {
        value: {method: [run["top1"] for run in runs if run["method"] == method] for method in methods}
        for value, runs in results.items()
    }
    for value, figures in by.items():
        cells = [f"{estimate(figures[method]):.2f}" for method in methods]
        if value != first:
            for method in methods:
                pairs = zip(figures[method], by[first][method], strict=True)
                cells.append(f"{estimate([one - other for one, other in pairs]):+.2f}")
        table.add_row(value, *cells)
    return table


if __name__ == "__main__":
    main()
