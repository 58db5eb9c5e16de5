"""The study of images without labels: its cases are valid, and its page is that of its records."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import record
from cases import CASES, FASHION_MNIST, Case, given_teacher
from conftest import ROOT
from factor_transfer.commands.compare import comparison_of
from factor_transfer.config.read import read_recipe
from factor_transfer.files import read_json, write_json
from results import made_from

STUDY = ROOT / "studies" / "unlabelled"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_is_a_valid_recipe(case: Case) -> None:
    given = case.data is FASHION_MNIST and not case.own_teacher
    teacher = [given_teacher(STUDY / "teachers" / "all-labels" / "weights.safetensors")] if given else []
    recipe = read_recipe(case.data.recipe, [*case.settings, f"name={case.name}", *teacher])
    assert (recipe.teacher.epochs is None) != case.own_teacher
    data = recipe.data.model_dump()
    assert (data["labelled"] is not None) == (case.unlabelled and not case.is_reference)
    assert data["limit"] == (None if case.unlabelled else case.labels)
    # A student takes about as many steps in each case: an epoch is a pass over all images, or over the labelled ones.
    per_epoch = -(-(case.data.images if case.unlabelled else case.labels) // 128)
    assert recipe.student.epochs is not None
    assert recipe.student.epochs * per_epoch == pytest.approx(case.data.steps, rel=0.06)
    # Fixed views do not limit how many different images it sees, but for those that can only be flipped.
    views = recipe.cache.views or 0
    assert views == 2 or views * (case.data.images if case.unlabelled else case.labels) >= 200_000


def test_the_pages_are_those_of_the_records() -> None:
    made = made_from(CASES)
    assert {path.name for path in made} == {"README.md", "unlabelled.md", "unlabelled.svg"}
    assert [path for path, content in made.items() if path.read_bytes() != content] == []


def test_students_may_be_recorded_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(FASHION_MNIST, 3000, own_teacher=True)
    expected = read_json(record.record_of(case))
    # Other versions of Python round a mean in another way.
    expected |= comparison_of(expected["runs"], case.methods, expected["teacher"], 10)
    monkeypatch.setattr(record, "RECORDS", tmp_path)
    experiment = cast("Any", SimpleNamespace(data=SimpleNamespace(classes=range(10))))
    write_json(record.record_of(case), {**expected, "runs": [], "methods": {}})
    for run in reversed(expected["runs"]):  # the students that the others are compared with come last
        assert record.missing(case)
        record.add_run(case, experiment, run, {})
    assert record.missing(case) == []
    assert read_json(record.record_of(case)) == expected
