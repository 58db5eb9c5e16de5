"""Any network, end to end: of timm, of transformers, of one's own; a vision transformer on either side."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Run, refused
from factor_transfer.models import build_model
from factor_transfer.pipeline.artefact import find
from factor_transfer.pipeline.experiment import load_network
from factor_transfer.state_dicts import read_weights

RECIPE = """
precision = "32-true"
name = "any"
[data]
name = "synthetic"
train = 48
test = 24
size = 16
validation = 0.25
[teacher]
epochs = 1
batch_size = 12
{teacher}
[paraphraser]
epochs = 1
batch_size = 12
[student]
epochs = 1
batch_size = 12
learning_rate = 0.01
{student}
[transfer.factor]
beta = 10
"""

OURS = 'model = "resnet8"\nargs = { width = 8 }'
TIMM_VIT = """model = "timm:vit_tiny_patch16_224"
args = { img_size = 16, patch_size = 4, embed_dim = 16, depth = 2, num_heads = 2, reg_tokens = 2 }"""
TIMM_CNN = 'model = "timm:test_resnet"'
HF_VIT = """model = "transformers:vit"
[SIDE.args]
image_size = 16
patch_size = 4
hidden_size = 16
num_hidden_layers = 2
num_attention_heads = 2
intermediate_size = 32"""
OWN = 'model = "mine:build"\nargs = { channels = 6 }'
MINE = """
from torch import nn

def build(num_classes, in_channels, channels=4):
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(in_channels, channels, 3, 2, 1), nn.BatchNorm2d(channels), nn.ReLU()),
        nn.Sequential(nn.Conv2d(channels, 2 * channels, 3, 2, 1), nn.BatchNorm2d(2 * channels), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * channels, num_classes),
    )
"""


def written(teacher: str, student: str) -> Path:
    Path("mine.py").write_text(MINE)
    path = Path("any.toml")
    path.write_text(
        RECIPE.format(teacher=teacher.replace("SIDE", "teacher"), student=student.replace("SIDE", "student"))
    )
    return path


@pytest.mark.parametrize(
    ("teacher", "student", "taps"),
    [
        pytest.param(OURS, TIMM_VIT, {"layer3": 32}, id="CNN to timm ViT"),
        pytest.param(TIMM_VIT, OURS, {"norm": 16}, id="timm ViT to CNN"),
        pytest.param(HF_VIT, OURS, {"vit": 16}, id="transformers ViT to CNN"),
        pytest.param(OURS, HF_VIT, {"layer3": 32}, id="CNN to transformers ViT"),
        pytest.param(TIMM_CNN, OWN, {"layer2": 48}, id="timm CNN to one's own"),
    ],
)
@pytest.mark.usefixtures("torchvision_operators")
def test_a_pair_runs_end_to_end(teacher: str, student: str, taps: dict[str, int], run: Run) -> None:
    recipe = written(teacher, student)
    result = run("run", recipe, "--baseline")
    assert result.code == 0, result.err
    record = json.loads(Path("runs/any/paraphraser/stage.json").read_text())
    assert record["in_channels"] == taps
    summary = json.loads(Path("runs/any/summary.json").read_text())
    for stage in ("teacher", "student-factor-seed0"):
        tested = run("test", recipe, f"runs/any/{stage}", "--json", "scores.json")
        assert tested.code == 0, tested.err
        assert json.loads(Path("scores.json").read_text())["top1"] == summary[stage.split("-")[0]]["top1"]
    compared = run("compare", recipe, "--methods", "kd,fitnets,at,crd,reviewkd,ofd", "--seeds", "1")
    assert compared.code == 0, compared.err
    assert "Failed" not in compared.out


@pytest.mark.usefixtures("torchvision_operators")
def test_weights_of_a_zoos_network_bring_the_zoos_normalisation(run: Run, tmp_path: Path) -> None:
    recipe = written(TIMM_CNN, OURS)
    torch.manual_seed(0)
    model = build_model("timm:test_resnet", 4)
    torch.save(model.state_dict(), "teacher.pth")
    result = run("run", recipe, f"teacher={{{TIMM_CNN}, weights='teacher.pth'}}", "student.epochs=1")
    assert result.code == 0, result.err
    assert "its images are normalised with its own mean" in result.out
    teacher, student = (
        json.loads(Path(f"runs/any/{stage}/stage.json").read_text()) for stage in ("teacher", "student-factor-seed0")
    )
    config: Any = model.pretrained_cfg
    assert teacher["mean"] == pytest.approx(list(config["mean"]))
    assert teacher["std"] == pytest.approx(list(config["std"]))
    assert student["mean"] != teacher["mean"]
    statistics = ["teacher.mean=[0.1, 0.2, 0.3]", "teacher.std=[1.0, 1.0, 1.0]"]
    own = run("teacher", recipe, f"teacher={{{TIMM_CNN}, weights='teacher.pth'}}", *statistics)
    assert own.code == 0, own.err
    assert json.loads(Path("runs/any/teacher/stage.json").read_text())["mean"] == [0.1, 0.2, 0.3]


def test_a_network_may_start_from_weights_and_be_trained_on(tiny: Path, run: Run, finished: Path) -> None:
    start = finished / "teacher" / "weights.safetensors"
    given = [f"teacher.weights='{start}'", "teacher.epochs=1", "teacher.learning_rate=1e-9"]
    assert run("teacher", tiny, *given).code == 0
    before, after = read_weights(start), read_weights(Path("runs/tiny/teacher/weights.safetensors"))
    trained = [key for key in before if key.endswith("weight")]
    assert all(torch.allclose(before[key], after[key], atol=1e-5) for key in trained)
    assert not all(torch.equal(before[key], after[key]) for key in before)


def test_a_reused_classifier_is_built_again(tiny: Path, run: Run) -> None:
    assert run("run", tiny, "transfer.method=simkd").code == 0
    result = run("test", tiny, "runs/tiny/student-simkd-seed0", "--json", "scores.json")
    assert result.code == 0, result.err
    summary = json.loads(Path("runs/tiny/summary.json").read_text())
    assert json.loads(Path("scores.json").read_text())["top1"] == summary["student"]["top1"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("odd:biuld", "has no 'biuld'; did you mean 'build'"),
        ("nowhere.at_all:build", "cannot be imported"),
        ("odd:wrong", "returns an object of type int; a torch.nn.Module is needed"),
        ("odd:unable", "raises a TypeError"),
    ],
)
def test_a_custom_callable_that_returns_no_network_is_refused(model: str, message: str, run: Run) -> None:
    recipe = written(OURS, OWN.replace("mine:build", model))
    wrong = "\ndef wrong(num_classes, in_channels, channels):\n    return 3\n\ndef unable(num_classes):\n    return 3\n"
    Path("odd.py").write_text(MINE + wrong)
    refused(run("run", recipe), message)
    assert not Path("runs").exists()


def test_a_teacher_and_a_paraphraser_from_elsewhere(tiny: Path, run: Run, finished: Path) -> None:
    own = read_weights(finished / "teacher" / "weights.safetensors")
    named = {f"head.{key}" if key.startswith("fc.") else f"backbone.{key}": value for key, value in own.items()}
    torch.save({"state_dict": named, "meta": {}}, "teacher.pth")
    layers: dict[str, str] = {}
    for old, new in (("conv", "encoder"), ("deconv", "decoder")):
        for number in range(3):
            layers |= {f"{old}{number}.{part}": f"{new}.{2 * number}.{part}" for part in ("weight", "bias")}
    paraphraser = read_weights(finished / "paraphraser" / "weights.safetensors")
    torch.save({"state_dict": {old: paraphraser[new] for old, new in layers.items()}, "epoch": 5}, "paraphraser.pth")
    teacher = "teacher={model='resnet8', args={width=8}, weights='teacher.pth'}"
    result = run("run", tiny, teacher, "paraphraser={weights='paraphraser.pth'}")
    assert result.code == 0, result.err
    assert f"teacher  the names are those of mmpretrain: {len(own)} of {len(own)} tensors match" in result.out
    assert "paraphraser  the names are those of the authors' paraphraser: 12 of 12 tensors match" in result.out
    for stage in ("teacher", "paraphraser"):
        taken, original = (read_weights(work / stage / "weights.safetensors") for work in (Path("runs/tiny"), finished))
        assert all(torch.equal(taken[key], original[key]) for key in original)
    assert run("test", tiny, "teacher.pth", teacher).code == 0


FLAT = """
from torch import nn

def build(num_classes, in_channels):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 256, 8), nn.ReLU(), nn.Linear(8, num_classes))
"""


def test_a_network_without_feature_maps_learns_from_answers(run: Run) -> None:
    recipe = written(OURS, 'model = "flat:build"')
    Path("flat.py").write_text(FLAT)
    result = run("run", recipe, "transfer.method=kd")
    assert result.code == 0, result.err
    refused(run("run", recipe), "factor transfer needs a feature map of the student; set student.tap")
    refused(run("run", recipe, "transfer.method=at"), "no stage that returns a feature map; name a tap")


def test_weights_from_a_zoo(tiny: Path, run: Run) -> None:
    refused(
        run("run", tiny, "student.weights=pretrained"),
        "resnet8 is one of this package's networks, which have no pretrained",
    )


def test_the_record_builds_the_network_of_a_zoo_again(run: Run) -> None:
    recipe = written(OURS, OWN)
    assert run("run", recipe, "transfer.method=student").code == 0
    done = find(Path("runs/any/student-alone-seed0"))
    assert done is not None
    assert load_network(done, trusted_code=["mine:build"])(torch.zeros(2, 3, 16, 16)).shape == (2, 4)
