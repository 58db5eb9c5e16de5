"""What fixed views cost in accuracy: the same recipe with V views of each image kept, and with ever new ones.

    python benchmarks/views.py RECIPE [KEY=VALUE ...] [--views none,4,8,16] [--seeds 3] [--work-dir DIR] [--json FILE]

One teacher; for each V a paraphraser, and students alone and by Factor Transfer over the seeds, as `compare` trains
them. Figures are top-1 of the last epoch on the test split; settings are the recipe's, chosen without it.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from factor_transfer.commands.compare import compare
from factor_transfer.config.read import read_recipe
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.stages.teacher import make_teacher
from factor_transfer.report.confidence import estimate

METHODS = ["student", "factor"]


def main() -> None:
    """Train all, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--views", default="none,4,8,16")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/views"))
    parser.add_argument("--json", type=Path)
    asked = parser.parse_intermixed_args()
    console = Console()

    def experiment(views: str) -> Experiment:
        overrides = [*asked.overrides, *([] if views == "none" else [f"cache.views={views}"])]
        return Experiment(read_recipe(asked.recipe, overrides), asked.work_dir / views, console, asked.recipe)

    results = {}
    first: Path | None = None
    for views in asked.views.split(","):
        one = experiment(views)
        if first is None:
            first = make_teacher(one).folder
        elif not (one.work_dir / "teacher").exists():  # the same for all
            one.work_dir.mkdir(parents=True, exist_ok=True)
            shutil.copy(first.parent / "recipe.json", one.work_dir)
            shutil.copytree(first, one.work_dir / "teacher")
        results[views] = compare(one, METHODS, asked.seeds)["runs"]
    console.print(as_table(results))
    if asked.json:
        asked.json.write_text(
            json.dumps({"recipe": asked.recipe, "overrides": asked.overrides, "runs": results}, indent=1)
        )


def as_table(results: dict[str, list[dict[str, Any]]]) -> Table:
    """Mean ± 95 % interval over the seeds, and the differences from ever new views, seed by seed."""
    table = Table("views", *METHODS, *(f"{method}, against new views" for method in METHODS))
    by = {
        views: {method: [run["top1"] for run in runs if run["method"] == method] for method in METHODS}
        for views, runs in results.items()
    }
    for views, figures in by.items():
        cells = [f"{estimate(figures[method]):.2f}" for method in METHODS]
        if "none" in by and views != "none":
            for method in METHODS:
                pairs = zip(figures[method], by["none"][method], strict=True)
                cells.append(f"{estimate([one - other for one, other in pairs]):+.2f}")
        table.add_row(views, *cells)
    return table


if __name__ == "__main__":
    main()
