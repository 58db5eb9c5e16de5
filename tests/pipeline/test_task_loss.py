"""The settings of the loss on labels, from the recipe to the student."""

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from conftest import Run, refused
from factor_transfer.data import Batch
from factor_transfer.training.trainer import Trainer

FEW = ["teacher.epochs=1", "paraphraser.epochs=1", "student.epochs=1"]
SOFTENED = [
    "transfer.schedule=linear",
    "student.label_smoothing=0.1",
    "student.ema_decay=0.9",
    "augment.mixup=0.4",
    "augment.cutmix=1",
]


def stage(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("work", name, "stage.json").read_text())
    return found


def test_the_student_learns_from_mixed_images_and_smoothed_labels(
    tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Tensor] = {}
    train = Trainer.forward_backward

    def noted(self: Trainer, part: Batch, *arguments: Any, **more: Any) -> None:
        seen[type(self.method).__name__] = part.labels
        train(self, part, *arguments, **more)

    monkeypatch.setattr(Trainer, "forward_backward", noted)
    assert run("run", tiny, *FEW, "--work-dir", "work").code == 0
    plain = stage("student-factor-seed0")
    assert {labels.dim() for labels in seen.values()} == {1}
    result = run("run", tiny, *FEW, *SOFTENED, "--work-dir", "work")
    assert result.code == 0, result.err
    assert "teacher  up to date" in result.out
    assert "paraphraser  up to date" in result.out
    assert "student-factor-seed0  runs again because its inputs changed" in result.out
    assert seen["Distillation"].dim() == 2
    changed = stage("student-factor-seed0")
    assert changed["inputs"]["student"]["label_smoothing"] == 0.1
    assert changed["inputs"]["augment"]["mixup"] == 0.4
    assert changed["inputs"]["schedule_of_terms"] == "linear"
    assert "schedule_of_terms" not in plain["inputs"]
    # Settings at their defaults are not recorded, so that students from before these settings stay up to date.
    assert not {"label_smoothing", "ema_decay"} & set(plain["inputs"]["student"])
    assert not {"mixup", "cutmix"} & set(plain["inputs"]["augment"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["augment.mixup=0.2", "cache.views=2"],
            "augment.mixup=.*: the teacher's outputs for mixed images cannot be cached",
        ),
        (["augment.cutmix=1", "data.labelled=0.5"], "augment.cutmix=.*: an image without a label cannot be mixed"),
        (["augment.mixup=0.2", "transfer.method=crd+kd"], "augment.mixup=.*: the term crd needs the class of each"),
        (["augment.mixup=0"], "augment.mixup"),
        (["student.label_smoothing=1"], "student.label_smoothing"),
        (["student.ema_decay=1"], "student.ema_decay"),
    ],
)
def test_mixing_that_cannot_be_combined_is_refused(tiny: Path, run: Run, settings: list[str], message: str) -> None:
    refused(run("run", tiny, *settings), message)
