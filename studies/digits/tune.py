"""Which settings the demo's recipe should have: students compared on validation images alone.

    python studies/digits/tune.py [KEY=VALUE ...] -- [KEY=VALUE ...] -- …

Each group of overrides is a setting; all are run on the same splits. A split is another division of the training
half into training and validation images, with its own teacher; the test half is never read. Prints, for each setting,
validation top-1 of the last epoch: teacher, student alone, student by the recipe's method (``transfer.method=kd``), and
their paired difference.
"""

import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev

from rich.console import Console

from factor_transfer.config.read import read_recipe
from factor_transfer.errors import InputError
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.stages.paraphraser import make_paraphraser
from factor_transfer.pipeline.stages.student import make_student
from factor_transfer.pipeline.stages.teacher import make_teacher

SPLITS = range(12)
QUIET = Console(quiet=True)


def tune(overrides: list[str], folder: Path) -> str:
    """One setting over all splits."""
    top1: dict[str, list[float]] = {"teacher": [], "alone": [], "taught": []}
    for split in SPLITS:
        fixed = [f"data.split_seed={split}"]
        for stage in ("teacher", "paraphraser", "student"):
            fixed += [f"{stage}.seed={split}", f"{stage}.keep=last"]
        recipe = read_recipe("digits/resnet20-resnet8", [*fixed, *overrides])
        experiment = Experiment(recipe, folder / str(split), QUIET, "")
        top1["teacher"].append(make_teacher(experiment).record["validation"]["top1"])
        if "factor" in recipe.terms:
            make_paraphraser(experiment)
        top1["taught"].append(make_student(experiment).record["validation"]["top1"])
        top1["alone"].append(make_student(experiment.with_method("student")).record["validation"]["top1"])
    gains = [taught - alone for taught, alone in zip(top1["taught"], top1["alone"], strict=True)]
    figures = "  ".join(f"{name} {mean(values):.2f}" for name, values in top1.items())
    return f"{' '.join(overrides) or 'as it stands'}: {figures}  gain {mean(gains):+.2f} ± {stdev(gains):.2f}"


def main() -> None:
    """Run every group of overrides."""
    groups: list[list[str]] = [[]]
    for argument in sys.argv[1:]:
        if argument == "--":
            groups.append([])
        else:
            groups[-1].append(argument)
    with tempfile.TemporaryDirectory() as folder:
        for group in groups:
            try:
                print(tune(group, Path(folder)), flush=True)
            except InputError as error:  # a setting that diverges
                print(f"{' '.join(group)}: {str(error).splitlines()[0]}", flush=True)


if __name__ == "__main__":
    main()
