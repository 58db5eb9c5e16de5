"""``factor-transfer check``: what it finds is so, and it leaves nothing behind."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import Run, looked, refused
from factor_transfer.data import Split
from factor_transfer.data.sets.equal_images import equal_images
from factor_transfer.state_dicts import read_weights, save_weights


def test_an_untrained_recipe_is_checked_without_leaving_files(tiny: Path, run: Run) -> None:
    found, out = looked(run, tiny)
    assert not Path("runs").exists()
    assert found["teacher"]["state"] == "untrained"
    assert found["paraphraser"]["state"] == "untrained"
    assert found["taps"] == {"teacher": {"layer3": [32, 2, 2]}, "student": {"layer3": [16, 2, 2]}}
    assert set(found["terms"]) == {"ce", "factor"}
    for key in ("share_of_loss", "share_of_gradient"):
        assert sum(part[key] for part in found["terms"].values()) == pytest.approx(1)
    for part in found["terms"].values():
        assert part["weighted"] == pytest.approx(part["value"] * part["weight"])
    assert found["terms"]["factor"]["weight"] == 50
    assert list(found["stages"]) == ["teacher", "paraphraser", "student"]
    for budget in found["stages"].values():
        assert budget["seconds"] > 0
        assert budget["memory_mb"] > 0
    assert found["networks"]["teacher"]["parameters"] > found["networks"]["student"]["parameters"]
    for words in ("cross-entropy", "Factor Transfer", "layer3 (32 x 2 x 2)", "chance 25.0 %"):
        assert words in out


def test_a_finished_run_has_its_recorded_accuracy(finished: Path, tiny: Path, run: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    found, _ = looked(run, tiny, "--work-dir", finished)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
    assert found["teacher"]["state"] == found["paraphraser"]["state"] == "finished"
    # All 24 validation images were looked at: the very figure that the stage recorded.
    assert found["teacher"]["top1"] == found["teacher"]["top1_recorded"]
    assert found["warnings"] == []


def test_a_teacher_below_its_recorded_accuracy_gets_a_warning(work: Path, tiny: Path, run: Run) -> None:
    record = json.loads((work / "teacher" / "stage.json").read_text())
    record["mean"] = [value + 5 for value in record["mean"]]
    record["validation"]["top1"] = 100.0
    (work / "teacher" / "stage.json").write_text(json.dumps(record))
    found, out = looked(run, tiny, "--work-dir", work)
    assert len(found["warnings"]) >= 1
    assert "Warning: the teacher classifies" in out


def test_a_given_teacher_near_chance_gets_a_warning(work: Path, tiny: Path, run: Run) -> None:
    state = read_weights(work / "teacher" / "weights.safetensors")
    state["fc.weight"] = torch.zeros_like(state["fc.weight"])
    save_weights(Path("broken.safetensors"), state)
    given = "teacher={model='resnet8', args={width=8}, weights='broken.safetensors'}"
    found, _ = looked(run, tiny, given)
    assert found["teacher"]["state"] == "given"
    assert "chance is 25.0 %" in found["warnings"][0]
    assert list(found["stages"]) == ["paraphraser", "student"]


@pytest.mark.parametrize(("beta", "kind"), [(0.001, "negligible"), (1e6, "drowns out")])
def test_an_unsuitable_beta_gets_a_suggestion(tiny: Path, run: Run, beta: float, kind: str) -> None:
    found, _ = looked(run, tiny, f"transfer.factor.beta={beta}")
    assert kind in found["warnings"][0]
    suggested = found["terms"]["factor"]["suggested_beta"]
    assert f"transfer.factor.beta={suggested:g}" in found["warnings"][0]
    better, _ = looked(run, tiny, f"transfer.factor.beta={suggested}")
    assert better["warnings"] == []
    assert better["terms"]["factor"]["share_of_gradient"] == pytest.approx(0.5, abs=0.2)


def test_terms_of_all_kinds_are_checked(tiny: Path, run: Run) -> None:
    for method in ("kd", "at+kd", "fitnets", "crd", "simkd", "ofd", "reviewkd", "student"):
        found, _ = looked(run, tiny, f"transfer.method={method}", "transfer.crd.negatives=20")
        assert set(found["terms"]) == ({"ce", *method.split("+")} if method != "student" else set())
        assert found["paraphraser"] is None


def test_recipes_that_cannot_work_are_refused(tiny: Path, run: Run) -> None:
    refused(run("check", tiny, "student.tap=layr3"), "student.tap, of resnet8: unknown tap 'layr3'; did you mean")
    refused(run("check", tiny, "transfer.method=simkd+kd"), "simkd replaces the student's network")


def test_images_in_training_and_test_get_a_warning(tiny: Path, tmp_path: Path, run: Run) -> None:
    """In memory by their pixels, on the disk by their files' bytes."""
    root = tmp_path / "fruit"
    generator = np.random.default_rng(0)
    for split, each in (("train", 8), ("test", 4)):
        for name in ("apple", "pear"):
            (root / split / name).mkdir(parents=True)
            for index in range(each):
                pixels = generator.integers(0, 256, (8, 8, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.bmp")  # files of one length
    few = ["teacher.batch_size=8", "paraphraser.batch_size=8", "student.batch_size=8"]

    def told(more: str) -> tuple[dict[str, Any], str]:
        found, out = looked(run, tiny, f"data={{name='folder', root='{root}'{more}}}", *few)
        return found["equal_images"], out

    nothing = {"count": 0, "pairs": []}
    for place in (", in_memory=true", ", in_memory=false, workers=0"):
        found, out = told(place)
        assert found == {"test": nothing, "validation": nothing}
        assert "among the training" not in out
    shutil.copy(root / "train/apple/1.bmp", root / "test/pear/9.bmp")
    with Image.open(root / "train/pear/2.bmp") as picture:  # the same picture in another file
        picture.save(root / "test/pear/again.png")
    for place, count in ((", in_memory=true", 2), (", in_memory=false, workers=0", 1)):
        found, out = told(place)
        assert found["test"]["count"] == count
        assert found["test"]["pairs"][0] == [str(root / "test/pear/9.bmp"), str(root / "train/apple/1.bmp")]
        assert f"Warning: {count} of 10 test images are among the training and validation images, too: " in out
        assert f"{root}/test/pear/9.bmp = {root}/train/apple/1.bmp" in out
    for index in range(8):
        shutil.copy(root / "test/pear/9.bmp", root / f"train/apple/{index}.bmp")
    found, out = told(", validation=0.5")
    assert found["validation"]["count"] == 4
    assert "Warning: 4 of 8 validation images are among the training images, too: " in out
    assert ", …. The accuracy measured on them is too high" in out


def test_images_without_files_are_named_by_their_place() -> None:
    images = torch.arange(5 * 3).reshape(5, 3, 1, 1).to(torch.uint8)
    split = Split(images, torch.zeros(5, dtype=torch.int64))
    found = equal_images("test", split.subset(torch.tensor([4, 2])), [split.subset(torch.tensor([0, 2, 2]))])
    assert found == {"count": 1, "pairs": [["test image 1", "training image 1"]]}
