"""All stages in a row, and the demonstration of them."""

from pathlib import Path
from typing import Any

from rich.console import Console

from factor_transfer.config.read import read_recipe
from factor_transfer.config.recipe import ALONE
from factor_transfer.data import Data
from factor_transfer.distributed import collectives
from factor_transfer.files import write_json
from factor_transfer.methods import TERMS
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.stages.all import make_paraphraser, make_student, make_teacher
from factor_transfer.pipeline.stages.build import preflight
from factor_transfer.pipeline.stages.stage import in_work_dir
from factor_transfer.pipeline.weights.initial import check_weights
from factor_transfer.report.results import network_figures, print_results, spread

DEMO_RECIPE = "digits/resnet20-resnet8"
DEMO_SEEDS = (0, 1, 2)


def run(experiment: Experiment, baseline: bool = False, fresh: bool = False) -> dict[str, Any]:
    """Bring all stages up to date, look at the test split, and write ``summary.json``.

    Args:
        experiment: the recipe in its work dir.
        baseline: also train the student alone, with the same budget.
        fresh: make every stage anew.

    Returns:
        What ``summary.json`` says: the ``method``, and the figures of ``teacher``, ``student`` and ``baseline``.
    """
    preflight(experiment, [experiment.recipe.method])
    check_weights(experiment)
    with in_work_dir(experiment):
        return _run(experiment, baseline, fresh)


def _run(experiment: Experiment, baseline: bool, fresh: bool) -> dict[str, Any]:
    terms = experiment.recipe.terms
    done = {"teacher": make_teacher(experiment, fresh)}
    if any(TERMS[name].needs_paraphraser for name in terms):
        make_paraphraser(experiment, fresh)
    done["student"] = make_student(experiment, fresh)
    if baseline and terms:
        done["baseline"] = make_student(experiment.with_method(ALONE), fresh)
    summary: dict[str, Any] = {"method": experiment.recipe.method, "teacher": None, "student": None, "baseline": None}
    summary |= {name: network_figures(experiment, artefact) for name, artefact in done.items()}
    collectives.on_rank_zero(lambda: write_json(experiment.work_dir / "summary.json", summary))
    return summary


def demo(work_dir: Path, console: Console) -> None:
    """Teacher, paraphraser and students on handwritten digits, the whole pipeline for each of three seeds."""
    summaries: list[dict[str, Any]] = []
    data: Data | None = None
    for seed in DEMO_SEEDS:
        overrides = [f"{stage}.seed={seed}" for stage in ("teacher", "paraphraser", "student")]
        recipe = read_recipe(DEMO_RECIPE, overrides)
        console.print(f"[bold]Seed {seed}[/bold] ({len(summaries) + 1} of {len(DEMO_SEEDS)})", highlight=False)
        folder = work_dir / f"seed{seed}"
        experiment = Experiment(recipe, folder, console, f"{DEMO_RECIPE} {' '.join(overrides)} --work-dir {folder}")
        if data is not None:
            experiment.data = data  # the same for all seeds, and said once
        summaries.append(run(experiment, baseline=True))
        data = experiment.data
    print_results(console, summaries, len(experiment.test))
    gains = [summary["student"]["top1"] - summary["baseline"]["top1"] for summary in summaries]
    each = ", ".join(f"{gain:+.2f}" for gain in gains)
    experiment.say(
        f"Factor Transfer changes the student's top-1 by {spread(gains)} points (mean ± standard deviation of the "
        f"paired differences: {each})."
    )
