"""A network that has learnt nothing, or less than it began with, is called that by every command that trains it."""

from pathlib import Path

import pytest

from conftest import Run
from factor_transfer.training.evaluate import at_chance

NOTHING = ["student.learning_rate=1e-30", "student.keep=last", "data.train=400"]


def test_accuracies_that_differ_from_chance() -> None:
    assert at_chance(10.0, 10, 10_000)
    assert at_chance(10.8, 10, 10_000)  # within three standard errors, 0.9
    assert not at_chance(11.0, 10, 10_000)
    assert at_chance(14.9, 10, 20)
    assert not at_chance(15.1, 10, 20)  # half above chance at most, however few the images


@pytest.mark.parametrize("command", [["run"], ["compare", "--methods", "factor", "--seeds", "1"]])
def test_a_student_at_chance_gets_a_warning(command: list[str], tiny: Path, run: Run) -> None:
    result = run(command[0], tiny, *NOTHING, *command[1:])
    assert result.code == 0, result.err
    assert "Warning: student-factor-seed0 has learned nothing: it classifies" in result.out
    assert "Warning: teacher" not in result.out
    if command[0] == "compare":
        assert "At chance, 25.0 %: Factor Transfer, seed 0. It has learned nothing." in result.out


def test_a_student_below_its_start_gets_a_warning(tiny: Path, run: Run) -> None:
    model = "model='resnet8', args={width=8}, epochs=1, batch_size=24, keep='last'"
    start = "weights='runs/tiny/teacher/weights.safetensors', learning_rate=3.0"
    assert run("teacher", tiny, "teacher.epochs=8").code == 0
    result = run("train", tiny, "teacher.epochs=8", "transfer.method=student", f"student={{{model}, {start}}}")
    assert result.code == 0, result.err
    assert "Warning: student-alone-seed0 is worse than its initial weights" in result.out
