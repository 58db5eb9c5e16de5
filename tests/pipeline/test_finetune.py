"""Students that learn without labels, and their fine-tuning on labels."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from conftest import Run, refused
from factor_transfer.config.read import read_recipe
from factor_transfer.export import qat
from factor_transfer.methods import Supervised
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.finished_run import find_run
from factor_transfer.training import trainer
from factor_transfer.training.checkpoint import save_training

FEW = ["teacher.epochs=1", "paraphraser.epochs=1", "student.epochs=1"]
TUNED = [*FEW, "student.labels=none", "student.finetune.epochs=6", "student.finetune.learning_rate=0.05"]


def figures(stage: str, work: str = "work") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(work, stage, "metrics.jsonl").read_text().splitlines()]


def record(stage: str, work: str = "work") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(work, stage, "stage.json").read_text())
    return found


def test_terms_alone_then_labels_alone(tiny: Path, run: Run) -> None:
    result = run("run", tiny, *TUNED, "--work-dir", "work")
    assert result.code == 0, result.err
    before, after = figures("untuned-factor-seed0"), figures("student-factor-seed0")
    assert "loss_factor" in before[0]
    assert "loss_ce" not in before[0]
    assert len(after) == 6
    assert "loss_factor" not in after[0]
    assert after[0]["learning_rate"] == 0.05
    assert after[-1]["accuracy"] > before[-1]["accuracy"]
    # In 8 bits, it learns from what it learned from last.
    experiment = Experiment(read_recipe(tiny, TUNED), Path("work"), Console(quiet=True), "")
    found = find_run(Path("work"))
    assert isinstance(qat._method(experiment, found, experiment.load(found.student)), Supervised)
    assert "untuned-factor-seed0 has learned nothing" not in result.out

    again = run("train", tiny, *TUNED, "student.finetune.epochs=1", "--work-dir", "work")
    assert again.code == 0, again.err
    assert "untuned-factor-seed0  up to date" in again.out
    assert "student-factor-seed0  runs again because its inputs changed" in again.out


def test_a_resumed_fine_tuning_ends_with_the_same_bytes(tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = [*FEW, "transfer.method=kd", "student.labels=none", "student.finetune.epochs=2"]
    assert run("teacher", tiny, *tuned, "--work-dir", "through").code == 0
    shutil.copytree("through", "killed")
    assert run("train", tiny, *tuned, "--work-dir", "through").code == 0

    def save_and_die(path: Path, state: Any) -> None:
        save_training(path, state)
        if path.parent.name == "student-kd-seed0":
            raise SystemError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_training", save_and_die)
        with pytest.raises(SystemError, match="killed"):
            run("train", tiny, *tuned, "--work-dir", "killed")
    resumed = run("train", tiny, *tuned, "--work-dir", "killed")
    assert resumed.code == 0, resumed.err
    assert "student-kd-seed0  resumes" in resumed.out
    sums = [record("student-kd-seed0", work)["weights_sha256"] for work in ("through", "killed")]
    assert sums[0] == sums[1]


def test_a_comparison_of_students_without_labels(tiny: Path, run: Run) -> None:
    given = [*FEW, "student.labels=none", "--methods", "student,kd", "--seeds", "1", "--work-dir", "work"]
    result = run("compare", tiny, *given, "student.finetune.epochs=1,2")
    assert result.code == 0, result.err
    row = "kd,student.finetune.epochs=2-seed0"
    assert "loss_ce" not in figures(f"untuned-{row}")[0]
    assert len(figures(f"student-{row}")) == 2
    # The student alone has only labels to learn from. The first row has the recipe's own settings: no fine-tuning.
    assert not Path("work/untuned-alone-seed0").exists()
    tuned = "alone,student.finetune.epochs=1-seed0"
    assert set(figures(f"untuned-{tuned}")[0]) == set(figures(f"student-{tuned}")[0])
    runs = {run["method"]: run for run in json.loads(Path("work/comparison.json").read_text())["runs"]}
    both = record(f"untuned-{row}")["seconds"] + record(f"student-{row}")["seconds"]
    assert runs["kd,student.finetune.epochs=2"]["seconds"] == both
    assert read_recipe(Path("work/student-alone-seed0/recipe.toml")).student.labels == "all"
    # The recipes of students from before this setting, and of those that learn from labels, have no such input.
    assert "labels" not in record("student-alone-seed0")["inputs"]["student"]
    checked = run("check", tiny, *FEW, "student.labels=none", "transfer.method=kd", "--work-dir", "work")
    assert checked.code == 0, checked.err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], 'student.labels = "none": factor compares features only, so the student\'s classifier'),
        (["transfer.method=student"], 'student.labels=none: the method "student" has no terms'),
        (["transfer.method=dkd"], "student.labels=none: the term dkd needs labels"),
        (["student.finetune.epochs=0"], "student.finetune.epochs"),
        (["student.finetune.learning_rate=0.1"], "student.finetune.epochs"),
    ],
)
def test_recipes_that_cannot_be_trained_are_refused(tiny: Path, run: Run, settings: list[str], message: str) -> None:
    refused(run("run", tiny, *FEW, "student.labels=none", *settings), message)
