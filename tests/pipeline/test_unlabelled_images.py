"""Images without labels from the recipe to the student."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from conftest import Run, looked, refused
from factor_transfer.data import UNLABELLED, Batch
from factor_transfer.methods import Distillation
from factor_transfer.training.trainer import Trainer

STUDENT = "student-factor-seed0"
FEW = ["data.train=240", "data.labelled=0.2", "teacher.epochs=1", "paraphraser.epochs=1"]  # 36 of 180 images


def camera(count: int, brightest: int = 256) -> None:
    """Pictures of noise, somewhere below the folder ``more``."""
    Path("more/inner").mkdir(parents=True)
    noise = torch.randint(0, brightest, (count, 8, 8, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for index, pixels in enumerate(noise.numpy()):
        Image.fromarray(pixels).save(f"more/inner/{index}.png")


def weights(work: str, stage: str = STUDENT) -> bytes:
    return Path(work, stage, "weights.safetensors").read_bytes()


def test_which_stage_sees_which_images(tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[Tensor]] = {}
    train = Trainer.forward_backward

    def noted(self: Trainer, part: Batch, *arguments: Any, **more: Any) -> None:
        seen.setdefault(type(self.method).__name__, []).append(part.labels)
        train(self, part, *arguments, **more)

    monkeypatch.setattr(Trainer, "forward_backward", noted)
    assert run("run", tiny, *FEW, "student.epochs=2").code == 0
    teacher, paraphraser, student = seen["Supervised"], seen["ParaphraserTraining"], seen["Distillation"]
    assert len(torch.cat(teacher)) == 36
    assert (torch.cat(teacher) != UNLABELLED).all()
    assert len(torch.cat(paraphraser)) == 180
    # In proportion there would be 5 labelled images in a batch of 24, but there are at least 8.
    assert [int((labels != UNLABELLED).sum()) for labels in student] == [8] * len(student)
    assert {len(labels) for labels in student} == {24}
    assert len(student) == 2 * 9  # passes over 144 images without labels, 16 per step


def test_a_part_of_a_batch_without_labels_is_refused_where_a_term_needs_them(tiny: Path, run: Run) -> None:
    few = [*FEW, "student.epochs=1", "transfer.method=dkd", "student.accumulate=6", "student.unlabelled_share=0.8"]
    refused(run("run", tiny, *few), "dkd needs a labelled image in each part of a batch, but a batch has only 5 for 1")


def test_a_student_alone_takes_as_many_steps_beside_the_others(tiny: Path, run: Run) -> None:
    result = run("compare", tiny, *FEW, "student.epochs=2", "--methods", "student,kd,dkd", "--seeds", "1")
    assert result.code == 0, result.err
    assert "144 unlabelled images" in result.out
    assert "student-alone-seed0  each batch has 24 labelled images; 9 steps per epoch" in result.out
    shared = "each batch has 8 labelled and 16 unlabelled images; 9 steps per epoch"
    assert f"student-kd-seed0, student-dkd-seed0  {shared}" in result.out
    assert "student-dkd-seed0  dkd uses labelled images only" in result.out
    shutil.copytree("runs/tiny", "one", ignore=lambda _, names: [name for name in names if name.startswith("student")])
    for method in ("kd", "dkd"):  # side by side or alone, to the byte
        alone = run("train", tiny, *FEW, "student.epochs=2", f"transfer.method={method}", "--work-dir", "one")
        assert alone.code == 0, alone.err
        assert weights("one", f"student-{method}-seed0") == weights("runs/tiny", f"student-{method}-seed0")


@pytest.mark.parametrize("more", [[], ["cache.views=3"]], ids=["plain", "cached"])
def test_a_stopped_training_resumes_to_the_same_bytes(
    more: list[str], tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("run", tiny, *FEW, *more, "student.epochs=2", "--work-dir", "through").code == 0
    step, steps = Trainer.optimizer_step, 0

    def stop(self: Trainer, *arguments: Any) -> None:
        nonlocal steps
        steps += isinstance(self.method, Distillation)
        if steps == 11:
            signal.raise_signal(signal.SIGTERM)
        step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "optimizer_step", stop)
        stopped = run("run", tiny, *FEW, *more, "student.epochs=2", "--work-dir", "stopped")
    assert stopped.code == 143
    assert "student-factor-seed0 has completed 1 of 2 epochs and 2 of 9 steps" in stopped.err
    assert run("run", tiny, *FEW, *more, "student.epochs=2", "--work-dir", "stopped").code == 0
    assert weights("stopped") == weights("through")


def test_cached_factors_are_those_of_the_teacher(tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    targets, batches = Distillation.targets, 0

    def compared(self: Distillation, images: Tensor, indices: Tensor, views: Tensor | None) -> Any:
        nonlocal batches
        found: dict[str, Any] = targets(self, images, indices, views)
        if views is not None:
            expected: Any = dict(self.named_terms())["factor"].target(self.teacher(images))
            (cached,), (computed,) = found["factor"], expected
            assert (cached - computed).abs().max() < 0.02 * computed.abs().max()  # bfloat16
            batches += 1
        return found

    monkeypatch.setattr(Distillation, "targets", compared)
    result = run("run", tiny, *FEW, "cache.views=2", "student.epochs=1")
    assert result.code == 0, result.err
    assert batches == 9


def test_changes_that_make_a_stage_outdated(tiny: Path, run: Run) -> None:
    camera(30)
    given = [tiny, "teacher.epochs=1", "paraphraser.epochs=1", "student.epochs=1"]
    assert run("run", *given).code == 0
    more = run("run", *given, "data.unlabelled=more")
    assert more.code == 0, more.err
    assert "teacher  up to date" in more.out
    assert "paraphraser  runs again because its inputs changed (unlabelled" in more.out
    assert "student-factor-seed0  runs again because its inputs changed (" in more.out
    assert run("run", *given, "data.unlabelled=more").out.count("up to date") == 3
    other = run("run", *given, "data.unlabelled=more", "student.unlabelled_share=0.25")
    assert "paraphraser  up to date" in other.out
    assert "each batch has 18 labelled and 6 unlabelled images; 5 steps per epoch" in other.out
    record = json.loads(Path("runs/tiny", STUDENT, "stage.json").read_text())
    assert record["inputs"]["student"]["unlabelled_share"] == 0.25


def test_a_share_without_images_is_refused(tiny: Path, run: Run) -> None:
    refused(run("teacher", tiny, "student.unlabelled_share=0.5"), "there are no images without labels")
    refused(run("run", tiny, "data.unlabelled=nowhere"), "data.unlabelled: nowhere does not exist")
    refused(run("run", tiny, "data.labelled=1.5"), "data.labelled")
    refused(run("train", tiny, "student.unlabelled_share=1"), "student.unlabelled_share")


def test_check_prints_the_composition_of_batches_and_warns_of_unlike_images(
    tiny: Path, run: Run, finished: Path
) -> None:
    found, out = looked(run, tiny, *FEW)
    assert found["unlabelled"]["images"] == 144
    assert "student  each batch has 8 labelled and 16 unlabelled images, 9 steps per epoch" in out
    assert not any("look different" in warning for warning in found["warnings"])
    assert found["unlabelled"]["confidence"] is None  # of a teacher that is not trained
    camera(20, brightest=32)
    found, out = looked(run, tiny, "data.unlabelled=more", "--work-dir", finished)
    assert "; the teacher's mean confidence is " in out
    (warning,) = [warning for warning in found["warnings"] if "look different" in warning]
    assert "the mean of their channels is 0.06, 0.06, 0.06 instead of 0." in warning
    assert "the standard deviation is 0.04, 0.04, 0.04 instead of 0." in warning
