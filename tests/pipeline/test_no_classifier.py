"""A teacher without a classifier for the classes of the data: only its features are used."""

import json
from pathlib import Path

import pytest
import torch

from conftest import Run, refused
from factor_transfer import build_model
from factor_transfer.state_dicts import save_weights

FEW = ["paraphraser.epochs=1", "student.epochs=1", "teacher.weights=backbone.safetensors", "teacher.classes=none"]
HEADS = {"for other classes": 7, "missing": None}


@pytest.fixture
def given(tiny: Path) -> Path:
    """The recipe with a teacher that is not trained."""
    top, rest = tiny.read_text().split("[teacher]\n")
    section, others = rest.split("\n\n", 1)
    model = [line for line in section.splitlines() if line.startswith(("model", "args"))]
    tiny.write_text("\n".join([f"{top}[teacher]", *model, "", others]))
    return tiny


def write_backbone(classes: int | None, left_out: str = "") -> None:
    torch.manual_seed(1)
    state = build_model("resnet8", classes or 4, width=8).state_dict()
    absent = ("fc.", left_out) if left_out else ("fc.",)
    kept = {key: value for key, value in state.items() if classes is not None or not key.startswith(absent)}
    save_weights(Path("backbone.safetensors"), kept)


@pytest.mark.parametrize("head", HEADS)
def test_features_alone_are_transferred(given: Path, run: Run, head: str) -> None:
    write_backbone(HEADS[head])
    result = run("run", given, *FEW, "--work-dir", "work")
    assert result.code == 0, result.err
    assert "teacher  has no classifier for these classes; only its features are used" in result.out
    summary = json.loads(Path("work/summary.json").read_text())
    assert summary["teacher"] is None
    assert summary["student"]["top1"] > 0
    assert "the report could not be written" not in result.out
    assert Path("work/report.html").is_file()
    refused(run("test", "work/teacher"), "the teacher in work/teacher has no classifier")
    assert run("test", "work").code == 0


def test_a_comparison_has_no_row_of_the_teacher(given: Path, run: Run) -> None:
    write_backbone(None)
    arguments = [*FEW, "--methods", "student,factor,at", "--seeds", "2", "--work-dir", "work"]
    result = run("compare", given, *arguments, "--csv", "table.csv", "--latex", "table.tex")
    assert result.code == 0, result.err
    found = json.loads(Path("work/comparison.json").read_text())
    assert found["teacher"] is None
    assert found["methods"]["factor"]["gap_closed"] is None
    assert found["methods"]["factor"]["difference"] is not None
    assert not any(line.startswith("| teacher") for line in result.out.splitlines())
    assert "teacher" not in Path("table.csv").read_text()
    assert "teacher" not in Path("table.tex").read_text()
    assert Path("work/report.html").is_file()
    checked = run("check", given, *FEW, "--work-dir", "work")
    assert checked.code == 0, checked.err
    assert (
        "without a classifier; these terms can be used with it: factor, fitnets, at, crd, ofd, reviewkd" in checked.out
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["transfer.method=factor+kd"], "teacher.classes=none: the term kd needs a teacher with a classifier"),
        (["transfer.method=simkd"], "teacher.classes=none: the term simkd needs a teacher with a classifier"),
        (["teacher.epochs=1"], 'with classes = "none", give the weights of a trained network'),
        (["student.classes=none"], 'with classes = "none", give the weights of a trained network'),
    ],
)
def test_terms_that_need_a_classifier_are_refused(given: Path, run: Run, settings: list[str], message: str) -> None:
    write_backbone(None)
    refused(run("run", given, *FEW, *settings), message)


def test_weights_that_lack_layers_of_the_features_are_refused(given: Path, run: Run) -> None:
    write_backbone(None, left_out="layer2.")
    refused(run("run", given, *FEW), "backbone.safetensors")
