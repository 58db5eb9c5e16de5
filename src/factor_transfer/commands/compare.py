"""Methods against each other: one teacher, one paraphraser, and for each seed the same batches for every method."""

from collections.abc import Mapping, Sequence
from typing import Any

from factor_transfer.commands.slurm import Jobs
from factor_transfer.config.recipe import ALONE, parse_method
from factor_transfer.data import Split
from factor_transfer.distributed import collectives
from factor_transfer.errors import InputError
from factor_transfer.files import write_json
from factor_transfer.methods import TERMS
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.stages.all import make_paraphraser, make_students, make_teacher
from factor_transfer.pipeline.stages.build import preflight
from factor_transfer.pipeline.stages.stage import in_work_dir
from factor_transfer.pipeline.weights.initial import check_weights
from factor_transfer.report.confidence import estimate
from factor_transfer.report.plot import plot_comparison
from factor_transfer.training.evaluate import top

_LEAST_GAP = 0.1  # points between student and teacher, of which a share means something
COMPARISON, PICTURE = "comparison.json", "comparison.png"


def parse_methods(methods: str) -> list[str]:
    """Methods that are separated by commas, the student alone first, for it is what the others are compared with.

    Raises:
        InputError: an unknown method, or one that is named twice.
    """
    names: list[str] = []
    for written in methods.split(","):
        name = "+".join(parse_method(written.strip())) or ALONE
        if name in names:
            raise InputError(f"--methods names {name!r} twice")
        names.append(name)
    return [ALONE, *(name for name in names if name != ALONE)]


def compare(experiment: Experiment, methods: Sequence[str], seeds: int, jobs: Jobs | None = None) -> dict[str, Any]:
    """Train every method for every seed, as far as that is not done, and write what came out.

    A training that fails is a run with an ``error`` in place of its figures; the others go on.

    Args:
        experiment: whose recipe has the settings of all terms; a term that has no table there has its defaults.
        methods: such as ``["student", "factor", "factor+kd"]``.
        seeds: how many; they begin with the recipe's ``student.seed``.
        jobs: who trains; without, this process does.

    Returns:
        What ``comparison.json`` says: ``runs``, ``teacher``, and figures of the ``methods``. Top-1 and top-5 in
        percent on the test split, of the last epoch (``top1_best``: of the epoch that validation chose).
    """
    if seeds < 1:
        raise InputError(f"--seeds must be at least 1, got {seeds}")
    preflight(experiment, methods)
    check_weights(experiment)
    with in_work_dir(experiment):
        return _compare(experiment, methods, seeds, jobs)


def _compare(experiment: Experiment, methods: Sequence[str], seeds: int, jobs: Jobs | None) -> dict[str, Any]:
    first = experiment.recipe.student.seed
    sent = jobs.students(experiment, methods, range(first, first + seeds)) if jobs else {}
    teacher = make_teacher(experiment)
    if any(TERMS[term].needs_paraphraser for method in methods for term in parse_method(method)):
        make_paraphraser(experiment)
    runs = []
    for seed in range(first, first + seeds):
        several = [experiment.with_method(method, seed) for method in methods]
        made = [sent[method, seed] for method in methods] if jobs else make_students(several)
        runs += [_run(*one) for one in zip(several, made, strict=True)]
    taught = figures_of(experiment, teacher, experiment.test)
    comparison = {
        "runs": runs,
        "teacher": {"top1": taught["top1"], "top5": taught["top5"], "loss": taught["loss"]},
        "methods": summarize(runs, methods, taught["top1"]),
    }
    collectives.on_rank_zero(lambda: write_json(experiment.work_dir / COMPARISON, comparison))
    collectives.on_rank_zero(lambda: plot_comparison(comparison, experiment.work_dir / PICTURE))
    return comparison


def figures_of(experiment: Experiment, done: Artefact, split: Split, last: bool = False) -> dict[str, float]:
    """Loss, top-1 and top-5 of a finished network; or as it was after its last epoch."""
    return top(*experiment.logits(experiment.load(done, last), split, experiment.normalize(done)))


def _run(experiment: Experiment, done: Artefact | Exception) -> dict[str, Any]:
    """One method, one seed: its student, or why there is none."""
    recipe = experiment.recipe
    settings = {name: term.model_dump(mode="json") for name, term in recipe.terms.items()}
    run: dict[str, Any] = {"method": recipe.method, "seed": recipe.student.seed}
    try:
        if isinstance(done, Exception):
            raise done
        last = figures_of(experiment, done, experiment.test, last=True)
        best = figures_of(experiment, done, experiment.test)
    except (InputError, RuntimeError, MemoryError) as error:
        experiment.say(f"{recipe.method}, seed {recipe.student.seed}, failed: {error}")
        failed = dict.fromkeys(("top1", "top5", "top1_best", "loss", "seconds"))
        return {**run, **failed, "settings": settings, "error": str(error)}
    return {
        **run,
        "top1": last["top1"],
        "top5": last["top5"],
        "top1_best": best["top1"],
        "loss": last["loss"],
        "seconds": done.record["seconds"],
        "settings": settings,
    }


def summarize(runs: Sequence[Mapping[str, Any]], methods: Sequence[str], teacher: float) -> dict[str, Any]:
    """What the runs say of each method.

    Args:
        runs: see ``compare``.
        methods: the student alone among them.
        teacher: its top-1.

    Returns:
        For each method: ``mean`` top-1 and its 95 % ``interval``; the ``difference`` from the student alone, the mean
        over seeds that both have, its ``difference_interval``, and whether it is ``significant``; the share of the gap
        between student and teacher that is closed (``gap_closed``, 1 is all); ``cost``, seconds of training relative
        to the student alone; and ``failed``, how many runs did. ``None`` where there is nothing to be said.
    """
    done = {method: {run["seed"]: run for run in runs if run["method"] == method} for method in methods}
    good = {method: {s: r for s, r in by_seed.items() if r["top1"] is not None} for method, by_seed in done.items()}
    alone = good[ALONE]
    result: dict[str, Any] = {}
    for method in methods:
        own = good[method]
        figures: dict[str, Any] = dict.fromkeys(
            ("mean", "interval", "difference", "difference_interval", "significant", "gap_closed", "cost")
        )
        if own:
            figures["mean"], figures["interval"] = estimate([run["top1"] for run in own.values()])
        both = sorted(own.keys() & alone.keys())
        if both:
            figures["cost"] = sum(own[s]["seconds"] for s in both) / sum(alone[s]["seconds"] for s in both)
        if both and method != ALONE:
            difference = estimate([own[seed]["top1"] - alone[seed]["top1"] for seed in both])
            figures["difference"], figures["difference_interval"] = difference
            figures["significant"] = difference.significant
            gap = teacher - sum(alone[seed]["top1"] for seed in both) / len(both)
            figures["gap_closed"] = difference.mean / gap if gap >= _LEAST_GAP else None
        result[method] = {**figures, "failed": len(done[method]) - len(own)}
    return result
