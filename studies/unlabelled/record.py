"""The record of a case: the students that it has, and one more."""

from collections import Counter
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

from cases import Case
from factor_transfer.commands.compare import comparison_of, figures_of
from factor_transfer.files import read_json, write_json
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.stages.teacher import make_teacher

RECORDS = Path(__file__).parent / "records"


def record_of(case: Case) -> Path:
    """The file of a case's record."""
    return RECORDS / f"{case.name}.json"


def missing(case: Case) -> list[tuple[str, int]]:
    """The methods and seeds of a case that are not in its record."""
    runs = read_json(record_of(case))["runs"] if record_of(case).exists() else []
    done = {(run["method"], run["seed"]) for run in runs}
    return [one for one in product(case.methods, range(case.data.seeds)) if one not in done]


def add_run(case: Case, experiment: Experiment, new: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Add a student to the record of its case, and compare what is complete.

    Args:
        case: the case.
        experiment: its experiment, with the teacher.
        new: the student's figures.
        here: the precision and the machine of its training.
    """
    place = record_of(case)
    record = read_json(place) if place.exists() else {"settings": case.settings, **here, "runs": []}
    order = list(product(case.methods, range(case.data.seeds)))
    runs = sorted([*record["runs"], {**new, **here}], key=lambda run: order.index((run["method"], run["seed"])))
    seeds = Counter(run["method"] for run in runs)
    complete = [method for method in case.methods if seeds[method] == case.data.seeds]
    # The teacher is the same on all machines, so it is tested once.
    teacher = record.get("teacher") or figures_of(experiment, make_teacher(experiment))
    record |= {"runs": runs, "teacher": teacher, "methods": {}}
    if "student" in complete:  # which the other methods are compared with
        record |= comparison_of(runs, complete, teacher, len(experiment.data.classes))
    write_json(place, record)
