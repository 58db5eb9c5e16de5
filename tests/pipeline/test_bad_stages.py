"""Bad weights, checkpoints and work dirs, trainings that end badly: one clear message, exit code 2, nothing lost."""

import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Run, refused, unwrapped
from factor_transfer import build_model
from factor_transfer.errors import InputError
from factor_transfer.pipeline.stages import teacher as stages
from factor_transfer.training.checkpoint import read_training
from factor_transfer.training.trainer import Trainer

STUDENT = "student-factor-seed0"


def test_a_missing_or_damaged_checkpoint(work: Path, tiny: Path, run: Run) -> None:
    refused(run("test", tiny, work / "nowhere"), "no checkpoint .*nowhere")
    weights = work / STUDENT / "weights.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:-10], whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]):
        weights.write_bytes(damaged)
        refused(run("test", tiny, work / STUDENT), r"student-factor-seed0/weights\.safetensors are damaged", "SHA-256")
        refused(run("run", tiny, "--work-dir", work), r"weights\.safetensors are damaged", "--fresh")
    (work / "bare.safetensors").write_bytes(whole[:-10])
    refused(run("test", tiny, work / "bare.safetensors"), r"bare\.safetensors are damaged")
    refused(run("test", tiny, work / "paraphraser"), "contains a paraphraser")
    weights.write_bytes(whole)
    refused(run("test", tiny, work / STUDENT, "data.classes=3"), "4 classes .* has 3 classes")


def test_a_damaged_training_checkpoint(work: Path, tiny: Path, run: Run) -> None:
    record = json.loads((work / STUDENT / "stage.json").read_text())
    (work / STUDENT / "stage.json").write_text(json.dumps({"finished": False, "inputs": record["inputs"]}))
    (work / STUDENT / "last.ckpt").write_bytes(b"PK\x03\x04 half a file")
    refused(run("train", tiny, "--work-dir", work), r"last\.ckpt is damaged", "--fresh")
    assert run("train", tiny, "--work-dir", work, "--fresh").code == 0


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: build_model("resnet8", 7, width=8),
            r"the classifier, fc, is for 7 classes, but the data has 4",
        ),
        (lambda: build_model("resnet14", 4, width=8), r"not in the model: layer1\.1\.conv1\.weight"),
    ],
)
def test_teacher_weights_that_do_not_fit(tiny: Path, tmp_path: Path, run: Run, model: object, message: str) -> None:
    torch.save(model().state_dict(), tmp_path / "teacher.pth")  # type: ignore[operator]
    tiny.write_text(tiny.read_text().replace("epochs = 3", f'weights = "{tmp_path}/teacher.pth"', 1))
    refused(run("run", tiny), r"teacher\.pth do not fit ResNet", message)
    (tmp_path / "teacher.pth").unlink()
    refused(run("run", tiny), r"cannot read .*teacher\.pth")


def test_a_paraphraser_or_teacher_that_is_missing(work: Path, tiny: Path, run: Run) -> None:
    shutil.rmtree(work / "paraphraser")
    mend = f"factor-transfer pretrain {tiny} --work-dir {work}"
    refused(run("train", tiny, "--work-dir", work), "the paraphraser is missing: .*work/paraphraser", re.escape(mend))
    shutil.rmtree(work / "teacher")
    mend = f"factor-transfer teacher {tiny} --work-dir {work}"
    refused(run("train", tiny, "--work-dir", work), "the teacher is missing", re.escape(mend))
    refused(run("pretrain", tiny, "--work-dir", work), "the teacher is missing", re.escape(mend))


def test_a_paraphraser_trained_on_another_teacher_or_tap(work: Path, tiny: Path, run: Run) -> None:
    before = (work / STUDENT / "weights.safetensors").read_bytes()
    taps = ["teacher.tap=layer2", "student.tap=layer2"]
    mend = f"factor-transfer pretrain {tiny} {' '.join(taps)} --work-dir {work}"
    refused(run("train", tiny, *taps, "--work-dir", work), "tap: 'layer3' then, 'layer2' now", re.escape(mend))
    assert run("teacher", tiny, "teacher.seed=5", "--work-dir", work).code == 0
    result = run("train", tiny, "teacher.seed=5", "--work-dir", work)
    refused(
        result,
        "the paraphraser in .* is not the one of this recipe",
        "teacher: '[0-9a-f]+…' then, '[0-9a-f]+…' now",
        "pretrain",
    )
    refused(
        run("train", tiny, "--work-dir", work),
        "the teacher in .* is not the one of this recipe",
        "teacher.seed: 5 then, 0 now",
    )
    assert (work / STUDENT / "weights.safetensors").read_bytes() == before


def test_a_work_dir_that_belongs_to_another_recipe(work: Path, tiny: Path, tmp_path: Path, run: Run) -> None:
    other = tiny.with_name("other.toml")
    other.write_text(tiny.read_text())
    refused(run("run", other, "--work-dir", work), "work dir .* belongs to the recipe 'tiny', not to 'other'")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    refused(run("run", tiny, "--work-dir", tmp_path / "mine"), "mine is not empty and was not made by factor-transfer")
    refused(run("run", tiny, "--work-dir", tiny), "cannot use work dir")


def test_a_loss_that_is_not_finite(tiny: Path, run: Run) -> None:
    explode = ["teacher.schedule=step", "teacher.milestones=[2]", "teacher.gamma=1e38"]
    result = run("teacher", tiny, *explode)
    refused(result, r"not finite in epoch 3, step \d: loss (nan|inf), accuracy", r"checkpoint is kept: .*last\.ckpt")
    checkpoint = read_training(Path("runs/tiny/teacher/last.ckpt"))
    assert checkpoint["epoch"] == 2
    assert all(value.isfinite().all() for value in checkpoint["method"].values())


def test_weights_that_the_last_step_broke(tiny: Path, run: Run) -> None:
    """One step an epoch: the loss was still finite, what it left is not, and is neither kept nor passed on."""
    result = run("run", tiny, "teacher.batch_size=72", "teacher.learning_rate=1e38", "teacher.epochs=1")
    refused(result, "not finite at the end of epoch 1: ", "lower learning_rate")
    assert "checkpoint is kept" not in result.err
    assert not Path("runs/tiny/teacher/weights.safetensors").exists()
    assert not Path("runs/tiny/paraphraser").exists()


def test_a_stage_folder_of_unknown_origin_is_not_resumed(work: Path, tiny: Path, run: Run) -> None:
    (work / STUDENT / "stage.json").unlink()
    result = run("run", tiny, "--work-dir", work)
    assert result.code == 0
    assert f"moved to {work / 'replaced' / STUDENT}-1" in unwrapped(result.out)


def test_damaged_records(work: Path, tiny: Path, run: Run) -> None:
    record = json.loads((work / "teacher" / "stage.json").read_text())
    for damage in ({"model": {"name": "resnet8"}}, {"mean": [0.5]}, {"classes": None}):
        (work / "teacher" / "stage.json").write_text(json.dumps({**record, **damage}))
        refused(run("test", tiny, work / "teacher"), "teacher/stage.json is damaged|takes images of 3 channels")
    for text in ("[]", "{", '{"finished": true}'):
        (work / "teacher" / "stage.json").write_text(text)
        refused(run("run", tiny, "--work-dir", work), r"teacher/stage\.json")
    (work / "recipe.json").write_text("[]")
    refused(run("run", tiny, "--work-dir", work), "belongs to the recipe None")


def test_missing_weights_are_reported_with_a_remedy(work: Path, tiny: Path, run: Run) -> None:
    (work / STUDENT / "weights.safetensors").unlink()
    refused(run("run", tiny, "--work-dir", work), "are missing; add --fresh")
    assert run("train", tiny, "--work-dir", work, "--fresh").code == 0


def test_ctrl_c(tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """130, as a shell expects of a program that was interrupted; the stage goes on where it was."""
    move, moves = Trainer.optimizer_step, 0

    def interrupted(self: Trainer, *arguments: Any) -> None:
        nonlocal moves
        moves += 1
        if moves == 3 * 2 + 1:
            signal.raise_signal(signal.SIGINT)
        move(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "optimizer_step", interrupted)
        stopped = run("teacher", tiny, "teacher.epochs=5")
    assert stopped.code == 130
    assert re.fullmatch(
        r"Stopped: teacher has completed 2 of 5 epochs and 1 of 3 steps, which are saved in .*last\.ckpt\n"
        r"The same command, without --fresh, resumes from there\n",
        stopped.err,
    )
    result = run("teacher", tiny, "teacher.epochs=5")
    assert result.code == 0
    assert "epoch 3/5" in result.out
    assert "epoch 2/5" not in result.out


def test_debug_shows_the_traceback(tiny: Path, run: Run) -> None:
    with pytest.raises(InputError, match=r"student\.epochs"):
        run("run", tiny, "student.epochs=ten", "--debug")


def test_out_of_memory_is_reported_and_bugs_are_not_hidden(
    tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(error: Exception) -> Callable[..., None]:
        def make(*_: object) -> None:
            raise error

        return make

    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        monkeypatch.setattr(stages, "make_teacher", fails(error))
        refused(run("teacher", tiny), "out of memory; a smaller batch_size")
    monkeypatch.setattr(stages, "make_teacher", fails(RuntimeError("a fault")))
    with pytest.raises(RuntimeError, match="a fault"):
        run("teacher", tiny)
