"""The command ``run``: all stages of a recipe, one after the other."""

from typing import Any

from factor_transfer.config.recipe import ALONE
from factor_transfer.distributed import collectives
from factor_transfer.files import write_json
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.stages.paraphraser import make_paraphraser
from factor_transfer.pipeline.stages.stage import in_work_dir
from factor_transfer.pipeline.stages.student import make_student, preflight
from factor_transfer.pipeline.stages.teacher import make_teacher
from factor_transfer.pipeline.weights.initial import check_networks
from factor_transfer.report.html.write import try_report
from factor_transfer.report.results import network_figures


def run(experiment: Experiment, baseline: bool = False, fresh: bool = False, report: bool = True) -> dict[str, Any]:
    """Bring all stages up to date, evaluate the networks on the test split, and write ``summary.json``.

    Args:
        experiment: the experiment.
        baseline: also train the student alone, with the same budget.
        fresh: train every stage again.
        report: also write ``report.html``.

    Returns:
        The content of ``summary.json``: the ``method``, and the figures of ``teacher``, ``student`` and ``baseline``.
    """
    preflight(experiment, [experiment.recipe.method])
    check_networks(experiment)
    return _run_stages(experiment, baseline, fresh, report)


@in_work_dir
def _run_stages(experiment: Experiment, baseline: bool, fresh: bool, report: bool) -> dict[str, Any]:
    terms = experiment.recipe.terms
    done = {"teacher": make_teacher(experiment, fresh)}
    if experiment.recipe.needs_paraphraser:
        make_paraphraser(experiment, fresh)
    done["student"] = make_student(experiment, fresh)
    if baseline and terms:
        done["baseline"] = make_student(experiment.with_method(ALONE), fresh)
    summary: dict[str, Any] = {"method": experiment.recipe.method, "teacher": None, "student": None, "baseline": None}
    summary |= {name: network_figures(experiment, one) for name, one in done.items() if one.has_classifier}
    collectives.on_rank_zero(lambda: write_json(experiment.work_dir / "summary.json", summary))
    if report:
        try_report(experiment)
    return summary
