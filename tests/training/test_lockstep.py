"""Methods side by side: what each gives is what it gives alone, whatever happens to the others."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from conftest import Run, refused
from factor_transfer.methods import KD, Teacher
from factor_transfer.training import trainer
from factor_transfer.training.checkpoint import save_training

METHODS = ["--methods", "student,kd,factor", "--seeds", "1"]
FOLDERS = ["student-alone-seed0", "student-kd-seed0", "student-factor-seed0"]


@pytest.fixture
def compare(finished: Path, tmp_path: Path, tiny: Path, run: Run) -> Callable[..., Any]:
    """Compare in a work dir of that name, which begins with a teacher and a paraphraser."""

    def call(name: str, *flags: str) -> Any:
        folder = tmp_path / name
        if not folder.exists():
            shutil.copytree(finished, folder, ignore=lambda _, names: [n for n in names if n.startswith("student")])
        return run("compare", tiny, *METHODS, "--work-dir", folder, *flags)

    return call


def weights(folder: Path) -> list[bytes]:
    return [(folder / name / "weights.safetensors").read_bytes() for name in FOLDERS]


def test_the_teacher_sees_each_batch_once(
    compare: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, finished: Path
) -> None:
    passes = 0
    forward = Teacher.forward

    def counted(self: Teacher, images: Tensor) -> Any:
        nonlocal passes
        before = self.reused_seconds
        seen = forward(self, images)
        passes += len(images) == 24 and self.reused_seconds == before
        return seen

    monkeypatch.setattr(Teacher, "forward", counted)
    result = compare("work")
    assert result.code == 0, result.err
    assert "side by side  student-alone-seed0, student-kd-seed0, student-factor-seed0" in result.out
    assert passes == 3 * 3  # epochs, batches; two methods ask


@pytest.mark.parametrize("killed_after", [4, 9])
def test_each_training_resumes_after_a_kill(
    compare: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_after: int
) -> None:
    """After so many checkpoints; of three students, some are an epoch further than others."""
    assert compare("through").code == 0
    save, saved = save_training, 0

    def save_and_die(path: Path, state: Any) -> None:
        nonlocal saved
        save(path, state)
        saved += 1
        if saved == killed_after:
            raise SystemError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_training", save_and_die)
        with pytest.raises(SystemError, match="killed"):
            compare("killed", "--debug")
    result = compare("killed")
    assert result.code == 0, result.err
    assert result.out.count("resumes from") == min(killed_after, 3)
    assert weights(tmp_path / "killed") == weights(tmp_path / "through")


def test_one_that_fails_does_not_disturb_the_others(
    compare: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compare("through").code == 0
    distance, calls = KD.distance, 0

    def fails(self: KD, *arguments: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 4:
            raise RuntimeError("out of memory")
        return distance(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(KD, "distance", fails)
        result = compare("failed")
    refused(result, "every seed failed for these methods:\n  kd: out of memory")
    assert "kd, seed 0, failed: out of memory" in result.out
    done = [(tmp_path / "failed" / name / "weights.safetensors").exists() for name in FOLDERS]
    assert done == [True, False, True]
    assert compare("failed").code == 0  # which trains what failed, from the start
    assert weights(tmp_path / "failed") == weights(tmp_path / "through")


def test_ctrl_c_reports_the_saved_steps_of_each(compare: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    move, moves = trainer.Trainer.optimizer_step, 0

    def stopped(self: trainer.Trainer, *arguments: Any) -> None:
        nonlocal moves
        moves += 1
        if moves == 3 * 4 + 2:
            signal.raise_signal(signal.SIGINT)
        move(self, *arguments)

    monkeypatch.setattr(trainer.Trainer, "optimizer_step", stopped)
    result = compare("work")
    assert result.code == 130
    for name in FOLDERS:
        assert f"{name} has completed 1 of 3 epochs and 2 of 3 steps" in " ".join(result.err.split())
