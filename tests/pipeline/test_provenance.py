"""A stage depends on all that it is made from, and on nothing else."""

import json
from pathlib import Path

import pytest
import torch

from conftest import Run, refused
from factor_transfer.files import sha256
from factor_transfer.report.confidence import Estimate
from factor_transfer.state_dicts import read_weights, save_weights

MINE = """
from torch import nn

def build(num_classes, in_channels):
    features = nn.Sequential(nn.Conv2d(in_channels, 4, 3, 2, 1), nn.ReLU())
    return nn.Sequential(features, nn.Flatten(), nn.Linear(64, num_classes))
"""


@pytest.mark.parametrize("others", ["student", "factor", "kd,at"])
def test_a_method_does_not_depend_on_the_others(others: str, tiny: Path, run: Run) -> None:
    weights = Path("runs/tiny/student-fitnets-seed0/weights.safetensors")
    quick = ["transfer.fitnets.weight=0.1"]
    for command in ("teacher", "train"):
        assert run(command, tiny, "transfer.method=fitnets", *quick).code == 0
    alone = sha256(weights)
    result = run("compare", tiny, *quick, "--methods", f"{others},fitnets", "--seeds", "1", "--work-dir", "other")
    assert result.code == 0, result.err
    assert sha256(Path("other/student-fitnets-seed0/weights.safetensors")) == alone


def test_another_normalisation_of_the_same_weights_is_another_teacher(tiny: Path, run: Run, finished: Path) -> None:
    save_weights(Path("t.safetensors"), read_weights(finished / "teacher" / "weights.safetensors"))
    given = "teacher={model='resnet8', args={width=8}, weights='t.safetensors'}"
    assert run("run", tiny, given).code == 0
    result = run("run", tiny, given, "teacher.mean=[0.9, 0.1, 0.5]", "teacher.std=[0.5, 0.1, 0.9]")
    assert result.code == 0, result.err
    for stage in ("teacher", "paraphraser", "student-factor-seed0"):
        assert f"{stage}  runs again" in result.out


def test_a_custom_network_is_identified_by_its_file(tiny: Path, run: Run) -> None:
    Path("changing.py").write_text(MINE)
    method = ["student.model=changing:build", "student.args={}", "transfer.method=student"]
    assert run("run", tiny, *method).code == 0
    Path("changing.py").write_text(MINE.replace("ReLU", "Tanh"))
    assert "student-alone-seed0  runs again" in run("run", tiny, *method).out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.weights=nowhere.pth", "cannot read weights nowhere.pth"),
        ("paraphraser.weights=nowhere.pth", "cannot read weights nowhere.pth"),
        ("student.weights=broken.safetensors", "weights broken.safetensors are not finite: fc.weight"),
        ("teacher.tap=['layer3', 'layer3']", "as many taps|names a tap twice"),
        ("teacher.tap=[]", "tap is empty"),
    ],
)
def test_faults_are_reported_before_training(override: str, message: str, tiny: Path, run: Run, finished: Path) -> None:
    state = read_weights(finished / "student-alone-seed0" / "weights.safetensors")
    state["fc.weight"] = torch.full_like(state["fc.weight"], torch.nan)
    save_weights(Path("broken.safetensors"), state)
    for command in (["run", tiny], ["compare", tiny, "--methods", "factor", "--seeds", "1"]):
        refused(run(*command, override), message)
    assert not Path("runs").exists()


def test_the_last_epochs_weights_have_the_stages_record(work: Path, tiny: Path, run: Run) -> None:
    stage = work / "teacher"
    if not (stage / "last.safetensors").exists():  # its best epoch was its last
        (stage / "last.safetensors").write_bytes((stage / "weights.safetensors").read_bytes())
        record = json.loads((stage / "stage.json").read_text())
        (stage / "stage.json").write_text(json.dumps(record | {"last_sha256": record["weights_sha256"]}))
    result = run("test", tiny, stage / "last.safetensors", "data.split_seed=3")
    assert result.code == 0, result.err
    assert "trained on other images" in result.out


def test_equal_values_have_no_interval() -> None:
    assert not Estimate(0.11, 0.0).significant


def test_a_stage_depends_on_more_of_an_earlier_one_than_its_weights(finished: Path) -> None:
    teacher = json.loads((finished / "teacher" / "stage.json").read_text())
    student = json.loads((finished / "student-factor-seed0" / "stage.json").read_text())
    assert student["inputs"]["teacher"] != teacher["weights_sha256"]


def test_a_new_setting_keeps_older_stages_up_to_date(work: Path, tiny: Path, run: Run) -> None:
    assert run("run", tiny, "--work-dir", work).code == 0
    record = json.loads((work / "student-factor-seed0" / "stage.json").read_text())
    assert set(record["inputs"]["factor"]) == {"beta", "p", "tap_weights", "attention", "batch_norm"}
