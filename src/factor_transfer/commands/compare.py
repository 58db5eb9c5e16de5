"""Methods against each other: one teacher, one paraphraser, and for each seed the same batches for every method."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from factor_transfer.config.recipe import ALONE, needs_paraphraser, parse_method
from factor_transfer.distributed import collectives
from factor_transfer.errors import InputError
from factor_transfer.files import write_json
from factor_transfer.pipeline import artefact
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.stages.paraphraser import make_paraphraser
from factor_transfer.pipeline.stages.stage import in_work_dir
from factor_transfer.pipeline.stages.student import make_students, preflight
from factor_transfer.pipeline.stages.teacher import make_teacher
from factor_transfer.pipeline.weights.initial import check_networks
from factor_transfer.report.confidence import CONFIDENCE, estimate, holm, p_value
from factor_transfer.report.html.write import try_report
from factor_transfer.report.plot import plot_comparison
from factor_transfer.training.evaluate import top

_LEAST_GAP = 0.1  # points between student and teacher, of which a share means something
_FIGURES = ("mean", "interval", "difference", "difference_interval", "p", "p_holm", "significant", "gap_closed", "cost")
COMPARISON, PICTURE = "comparison.json", "comparison.png"

# A student's experiment and what was trained, or the error in its place -> its record, see ``score``.
Score = Callable[[Experiment, Artefact | Exception], dict[str, Any]]


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


class Runner(Protocol):
    """Who trains the students of a comparison."""

    def runs(
        self, experiment: Experiment, methods: Sequence[str], seeds: Sequence[int], score: Score
    ) -> list[dict[str, Any]]:
        """Bring teacher and paraphraser up to date, train a student of each method and seed, and score them."""


class ThisProcess:
    """Trains all students of a comparison in this process, those of a seed in lockstep."""

    def runs(
        self, experiment: Experiment, methods: Sequence[str], seeds: Sequence[int], score: Score
    ) -> list[dict[str, Any]]:
        """Bring teacher and paraphraser up to date, train a student of each method and seed, and score them."""
        make_teacher(experiment)
        if any(map(needs_paraphraser, methods)):
            make_paraphraser(experiment)
        runs = []
        for seed in seeds:
            several = [experiment.with_method(method, seed) for method in methods]
            runs += [score(*one) for one in zip(several, make_students(several), strict=True)]
        return runs


def compare(
    experiment: Experiment, methods: Sequence[str], seeds: int, runner: Runner | None = None, against: str = ALONE
) -> dict[str, Any]:
    """Train every method for every seed, as far as that is not done, and write what came out.

    A training that fails is a run with an ``error`` in place of its figures; the others go on.

    Args:
        experiment: whose recipe has the settings of all terms; a term that has no table there has its defaults.
        methods: such as ``["student", "factor", "factor+kd"]``.
        seeds: how many; they begin with the recipe's ``student.seed``.
        runner: who trains; this process, if left out.
        against: the method that the others are compared with.

    Returns:
        What ``comparison.json`` says: ``runs``, ``teacher``, figures of the ``methods`` (see ``summarize``), the method
        they are compared ``against``, and the differences between any two (see ``pairwise``). Top-1 and top-5 in
        percent on the test split, of the last epoch (``top1_best``: of the epoch that validation chose).
    """
    if against not in methods:
        raise InputError(f"--against names {against!r}, which is not compared; give one of {', '.join(methods)}")
    if seeds < 1:
        raise InputError(f"--seeds must be at least 1, got {seeds}")
    preflight(experiment, methods)
    check_networks(experiment)
    return _train_and_score(experiment, methods, seeds, runner or ThisProcess(), against)


@in_work_dir
def _train_and_score(
    experiment: Experiment, methods: Sequence[str], seeds: int, runner: Runner, against: str
) -> dict[str, Any]:
    first = experiment.recipe.student.seed
    runs = runner.runs(experiment, methods, range(first, first + seeds), score)
    teacher = artefact.find(experiment.work_dir / "teacher")
    assert teacher is not None  # the runner has made it
    of_teacher = figures_of(experiment, teacher)
    comparison = {
        "runs": runs,
        "teacher": {"top1": of_teacher["top1"], "top5": of_teacher["top5"], "loss": of_teacher["loss"]},
        "classes": len(experiment.data.classes),
        "against": against,
        "methods": summarize(runs, methods, of_teacher["top1"], against),
        "pairwise": pairwise(runs, methods),
    }
    collectives.on_rank_zero(lambda: write_json(experiment.work_dir / COMPARISON, comparison))
    collectives.on_rank_zero(lambda: plot_comparison(comparison, experiment.work_dir / PICTURE))
    try_report(experiment)
    return comparison


def refuse_failed(comparison: Mapping[str, Any]) -> None:
    """End a command in an error where a method has no result at all.

    Raises:
        InputError: every seed of a method failed; the message has the reasons.
    """
    failed: dict[str, list[str]] = {}
    for run in comparison["runs"]:
        failed.setdefault(run["method"], []).append(run.get("error", ""))
    lines = [f"{method}: {errors[0]}" for method, errors in failed.items() if all(errors)]
    if lines:
        raise InputError("\n  ".join(["every seed failed, of these methods:", *lines]))


def figures_of(experiment: Experiment, done: Artefact, last: bool = False) -> dict[str, float]:
    """Loss, top-1 and top-5 of a finished network on the test images; or as it was after its last epoch."""
    return top(*experiment.test_logits(done, last))


def score(experiment: Experiment, done: Artefact | Exception) -> dict[str, Any]:
    """The record of one student: its figures on the test split, or why there is none."""
    recipe = experiment.recipe
    settings = {name: term.model_dump(mode="json") for name, term in recipe.terms.items()}
    run: dict[str, Any] = {"method": recipe.method, "seed": recipe.student.seed}
    try:
        if isinstance(done, Exception):
            raise done
        last = figures_of(experiment, done, last=True)
        # Where the last epoch is the delivered one, its network is the same, and need not be run again.
        best = last if done.record.get("last_sha256") is None else figures_of(experiment, done)
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


def summarize(
    runs: Sequence[Mapping[str, Any]], methods: Sequence[str], teacher: float, against: str = ALONE
) -> dict[str, Any]:
    """What the runs say of each method.

    Args:
        runs: see ``compare``.
        methods: the student alone among them.
        teacher: its top-1.
        against: the method that the others are compared with.

    Returns:
        For each method: ``mean`` top-1 and its 95 % ``interval``; the ``difference`` from ``against``, the mean over
        the seeds that both have, and its ``difference_interval``; the ``p`` value of that difference, ``p_holm``,
        corrected for all methods that are tested, and whether it is ``significant``, below 0.05; the share of the gap
        between the student alone and the teacher that is closed (``gap_closed``, 1 is all); ``cost``, the seconds of
        training relative to the student alone; and ``failed``, how many runs did. ``None`` where nothing can be said.
    """
    top1, seconds = _by_seed(runs, methods, "top1"), _by_seed(runs, methods, "seconds")
    alone = top1[ALONE]
    result: dict[str, Any] = {}
    for method in methods:
        own = top1[method]
        figures: dict[str, Any] = dict.fromkeys(
            (
                "mean",
                "interval",
                "difference",
                "difference_interval",
                "p",
                "p_holm",
                "significant",
                "gap_closed",
                "cost",
            )
        )
        if own:
            figures["mean"], figures["interval"] = estimate(list(own.values()))
        both = sorted(own.keys() & alone.keys())
        if both:
            figures["cost"] = sum(seconds[method][s] for s in both) / sum(seconds[ALONE][s] for s in both)
        if both and method != ALONE:
            gap = teacher - sum(alone[seed] for seed in both) / len(both)
            gained = sum(own[seed] - alone[seed] for seed in both) / len(both)
            figures["gap_closed"] = gained / gap if gap >= _LEAST_GAP else None
        differences = _differences(own, top1[against])
        if differences and method != against:
            figures["difference"], figures["difference_interval"] = estimate(differences)
            figures["p"] = p_value(differences)
        failed = sum(run["method"] == method for run in runs) - len(own)
        result[method] = {**figures, "failed": failed}
    for figures, corrected in zip(result.values(), holm([one["p"] for one in result.values()]), strict=True):
        figures["p_holm"] = corrected
        if figures["difference"] is not None:
            figures["significant"] = corrected is not None and corrected < 1 - CONFIDENCE
    return result


def pairwise(runs: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The paired differences between any two methods.

    Args:
        runs: see ``compare``.
        methods: those to compare.

    Returns:
        ``result[a][b]``: the mean ``difference`` of a's top-1 from b's over the seeds that both have, its 95 %
        ``interval``, its ``p`` value, and ``p_holm``, corrected for all pairs.
    """
    top1 = _by_seed(runs, methods, "top1")
    pairs = [(a, b) for index, a in enumerate(methods) for b in methods[index + 1 :]]
    differences = {pair: _differences(top1[pair[0]], top1[pair[1]]) for pair in pairs}
    p_values = [p_value(values) for values in differences.values()]
    result: dict[str, dict[str, Any]] = {method: {} for method in methods}
    for (a, b), p, corrected in zip(pairs, p_values, holm(p_values), strict=True):
        mean, interval = estimate(differences[a, b]) if differences[a, b] else (None, None)
        spread = {"interval": interval, "p": p, "p_holm": corrected}
        result[a][b] = {"difference": mean, **spread}
        result[b][a] = {"difference": None if mean is None else -mean, **spread}
    return result


def _by_seed(runs: Sequence[Mapping[str, Any]], methods: Sequence[str], figure: str) -> dict[str, dict[int, float]]:
    """A figure of the runs that did not fail, by method and seed."""
    good = [run for run in runs if run["top1"] is not None]
    return {method: {run["seed"]: run[figure] for run in good if run["method"] == method} for method in methods}


def _differences(own: Mapping[int, float], other: Mapping[int, float]) -> list[float]:
    return [own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())]
