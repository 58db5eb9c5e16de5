"""The comparison of methods: one teacher and one paraphraser for all, and the same batches for all in each seed."""

from collections.abc import Callable, Mapping, Sequence
from math import fsum
from statistics import fmean
from typing import Any, Protocol

from factor_transfer.config.recipe import ALONE, parse_method
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
from factor_transfer.report.confidence import CONFIDENCE, estimate, holm, mean_of_known, p_value
from factor_transfer.report.html.write import try_report
from factor_transfer.report.plot import plot_comparison
from factor_transfer.training.evaluate import top

_LEAST_GAP = 0.1  # the smallest gap between student and teacher, in points, that a closed share is given of
_FIGURES = (
    *("mean", "interval", "top1_last", "top1_kept", "difference", "difference_interval"),
    *("p", "p_holm", "significant", "gap_closed", "cost", "validation_top1"),
)
COMPARISON, PICTURE = "comparison.json", "comparison.png"

# (the experiment of a student, the student or the error of its training) -> the record of the run, see ``score``.
Score = Callable[[Experiment, Artefact | Exception], dict[str, Any]]


def parse_methods(methods: str) -> list[str]:
    """The methods in a text, separated by commas; the student alone is always added, as the first one.

    Raises:
        InputError: a method is unknown or named twice.
    """
    names: list[str] = []
    for text in methods.split(","):
        name = "+".join(parse_method(text.strip())) or ALONE
        if name in names:
            raise InputError(f"--methods names {name!r} twice")
        names.append(name)
    return [ALONE, *(name for name in names if name != ALONE)]


class Runner(Protocol):
    """The way in which the students of a comparison are trained, such as in this process or as Slurm jobs."""

    def runs(
        self, experiment: Experiment, methods: Sequence[str], seeds: Sequence[int], score: Score
    ) -> list[dict[str, Any]]:
        """Bring teacher and paraphraser up to date, train a student per method and seed, and score the students."""


class ThisProcess:
    """A runner that trains all students of a comparison in this process, those of the same seed in lockstep."""

    def runs(
        self, experiment: Experiment, methods: Sequence[str], seeds: Sequence[int], score: Score
    ) -> list[dict[str, Any]]:
        """Bring teacher and paraphraser up to date, train a student per method and seed, and score the students."""
        make_teacher(experiment)
        if experiment.needs_paraphraser(methods):
            make_paraphraser(experiment)
        runs = []
        for seed in seeds:
            students = [experiment.with_method(method, seed) for method in methods]
            runs += [score(*pair) for pair in zip(students, make_students(students), strict=True)]
        return runs


def compare(
    experiment: Experiment, methods: Sequence[str], seeds: int, runner: Runner | None = None, against: str = ALONE
) -> dict[str, Any]:
    """Train every method with every seed, unless that is done, and write the results.

    A training that fails is a run with an ``error`` in place of its figures; the others continue.

    Args:
        experiment: the experiment whose recipe has the settings of the terms; a term without a table has its defaults.
        methods: the methods, such as ``["student", "factor", "factor+kd"]``, or the rows of a sweep, see ``Sweep``.
        seeds: the number of seeds; the first one is the recipe's ``student.seed``.
        runner: how the students are trained; in this process, by default.
        against: the method that the others are compared with.

    Returns:
        The content of ``comparison.json``: ``runs``, ``teacher``, figures of the ``methods`` (see ``summarize``), the
        method they are compared ``against``, and the differences between any two (see ``pairwise``). Top-1 and top-5
        are in percent on the test split, after the last epoch. ``top1_last`` names that top-1 too; ``top1_kept`` is of
        the epoch whose weights are delivered, in ``weights.safetensors`` (and so is ``top1_best``, its former name).
    """
    check_arguments(methods, seeds, against)
    preflight(experiment, methods)
    check_networks(experiment)
    for method in methods:
        if ",student." in method:
            check_networks(experiment.with_method(method))
    return _train_and_score(experiment, methods, seeds, runner or ThisProcess(), against)


def check_arguments(methods: Sequence[str], seeds: int, against: str) -> None:
    """Check the arguments of ``compare``.

    Raises:
        InputError: if ``against`` is not among the methods, or there is no seed.
    """
    if against not in methods:
        raise InputError(
            f"--against names {against!r}, which is not among the compared methods; give one of {', '.join(methods)}"
        )
    if seeds < 1:
        raise InputError(f"--seeds must be at least 1, got {seeds}")


@in_work_dir
def _train_and_score(
    experiment: Experiment, methods: Sequence[str], seeds: int, runner: Runner, against: str
) -> dict[str, Any]:
    first = experiment.recipe.student.seed
    runs = runner.runs(experiment, methods, range(first, first + seeds), score)
    teacher = artefact.find(experiment.work_dir / "teacher")
    assert teacher is not None  # the runner has trained it
    reached = figures_of(experiment, teacher) if teacher.has_classifier else None
    comparison = comparison_of(runs, methods, reached, len(experiment.data.classes), against)
    collectives.on_rank_zero(lambda: write_json(experiment.work_dir / COMPARISON, comparison))
    collectives.on_rank_zero(lambda: plot_comparison(comparison, experiment.work_dir / PICTURE))
    try_report(experiment)
    return comparison


def comparison_of(
    runs: Sequence[Mapping[str, Any]],
    methods: Sequence[str],
    teacher: Mapping[str, float] | None,
    classes: int,
    against: str = ALONE,
) -> dict[str, Any]:
    """The content of ``comparison.json``, from the records of runs.

    Args:
        runs: the records of the runs, see ``compare``.
        methods: the methods to compare, with the student alone and ``against`` among them.
        teacher: the teacher's figures on the test images; ``None`` for a teacher without a classifier.
        classes: the number of classes.
        against: the method that the others are compared with.
    """
    return {
        "runs": runs,
        "teacher": None if teacher is None else {name: teacher[name] for name in ("top1", "top5", "loss")},
        "classes": classes,
        "against": against,
        "methods": summarize(runs, methods, None if teacher is None else teacher["top1"], against),
        "pairwise": pairwise(runs, methods),
    }


def refuse_failed(comparison: Mapping[str, Any]) -> None:
    """Raise an error if a method has no result at all.

    Raises:
        InputError: every seed of a method failed; the message gives the reasons.
    """
    failed: dict[str, list[str]] = {}
    for run in comparison["runs"]:
        failed.setdefault(run["method"], []).append(run.get("error", ""))
    lines = [f"{method}: {errors[0]}" for method, errors in failed.items() if all(errors)]
    if lines:
        raise InputError("\n  ".join(["every seed failed for these methods:", *lines]))


def figures_of(experiment: Experiment, done: Artefact, last: bool = False) -> dict[str, float]:
    """Loss, top-1 and top-5 of a finished network on the test images.

    Args:
        experiment: the experiment.
        done: the finished stage of the network.
        last: use the weights of the last epoch, even if the delivered ones are of another.
    """
    return top(*experiment.test_logits(done, last))


def score(experiment: Experiment, done: Artefact | Exception) -> dict[str, Any]:
    """The record of one run: the student's figures on the test split, or the error of its training."""
    recipe = experiment.recipe
    settings = {name: term.model_dump(mode="json") for name, term in recipe.terms.items()}
    run: dict[str, Any] = {"method": recipe.row, "seed": recipe.student.seed}
    try:
        if isinstance(done, Exception):
            raise done
        last = figures_of(experiment, done, last=True)
        # If the delivered weights are those of the last epoch, they need not be evaluated again.
        kept = last if done.record.get("last_sha256") is None else figures_of(experiment, done)
    except (InputError, RuntimeError, MemoryError) as error:
        experiment.say(f"{recipe.row}, seed {recipe.student.seed}, failed: {error}")
        names = "top1", "top5", "top1_last", "top1_kept", "top1_best", "validation_top1", "loss", "seconds"
        return {**run, **dict.fromkeys(names), "settings": settings, "error": str(error)}
    return {
        **run,
        "top1": last["top1"],
        "top5": last["top5"],
        "top1_last": last["top1"],
        "top1_kept": kept["top1"],
        "top1_best": kept["top1"],  # the former name of ``top1_kept``
        "validation_top1": (done.record.get("validation") or {}).get("top1"),
        "loss": last["loss"],
        "weights_sha256": done.record["weights_sha256"],
        "seconds": done.record["seconds"] + done.record.get("untuned_seconds", 0.0),
        "settings": settings,
    }


def summarize(
    runs: Sequence[Mapping[str, Any]], methods: Sequence[str], teacher: float | None, against: str = ALONE
) -> dict[str, Any]:
    """The statistics of each method over its runs.

    Args:
        runs: the records of the runs, see ``compare``.
        methods: the methods, with the student alone among them.
        teacher: the teacher's top-1, in percent; ``None`` for a teacher without a classifier.
        against: the method that the others are compared with.

    Returns:
        For each method: ``mean`` top-1 of the last epoch and its 95 % ``interval``; that mean again as ``top1_last``,
        and the mean of the delivered weights as ``top1_kept``; the ``difference`` from ``against``, the mean over the
        seeds that both have, and its ``difference_interval``; the ``p`` value of that difference, ``p_holm``,
        corrected for all methods that are tested, and whether it is ``significant``, below 0.05; the share of the gap
        between the student alone and the teacher that is closed (``gap_closed``, 1 is all); ``cost``, the seconds of
        training relative to the student alone; ``validation_top1``, the mean on the validation images, of the delivered
        weights; and ``failed``, the number of failed runs. ``None`` where undefined.
    """
    top1, seconds = _by_seed(runs, methods, "top1"), _by_seed(runs, methods, "seconds")
    alone = top1[ALONE]
    result: dict[str, Any] = {}
    for method in methods:
        own = top1[method]
        of_method = [run for run in runs if run["method"] == method]
        figures: dict[str, Any] = dict.fromkeys(_FIGURES)
        if own:
            figures["mean"], figures["interval"] = estimate(list(own.values()))
            figures["top1_last"] = figures["mean"]
            for figure in ("top1_kept", "validation_top1"):
                figures[figure] = mean_of_known(run.get(figure) for run in of_method)
        both = sorted(own.keys() & alone.keys())
        if both:
            figures["cost"] = fsum(seconds[method][s] for s in both) / fsum(seconds[ALONE][s] for s in both)
        if both and method != ALONE and teacher is not None:
            gap = teacher - fmean(alone[seed] for seed in both)
            gained = fmean(own[seed] - alone[seed] for seed in both)
            figures["gap_closed"] = gained / gap if gap >= _LEAST_GAP else None
        differences = _differences(own, top1[against])
        if differences and method != against:
            figures["difference"], figures["difference_interval"] = estimate(differences)
            figures["p"] = p_value(differences)
        failed = len(of_method) - len(own)
        result[method] = {**figures, "failed": failed}
    for figures, corrected in zip(result.values(), holm([one["p"] for one in result.values()]), strict=True):
        figures["p_holm"] = corrected
        if figures["difference"] is not None:
            figures["significant"] = corrected is not None and corrected < 1 - CONFIDENCE
    return result


def pairwise(runs: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The paired differences between any two methods.

    Args:
        runs: the records of the runs, see ``compare``.
        methods: the methods to compare.

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
    """One figure of all runs that did not fail, by method and seed."""
    good = [run for run in runs if run["top1"] is not None]
    return {method: {run["seed"]: run[figure] for run in good if run["method"] == method} for method in methods}


def _differences(own: Mapping[int, float], other: Mapping[int, float]) -> list[float]:
    return [own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())]
