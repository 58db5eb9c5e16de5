"""Presets: whose settings hold where a recipe says nothing."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from conftest import Run
from factor_transfer import FactorTransfer, Paraphraser, ParaphraserTraining, Translator, build_model
from factor_transfer.config.presets import PRESETS
from factor_transfer.config.read import read_recipe
from factor_transfer.data import Batch
from factor_transfer.methods.paraphraser import Reconstruction
from factor_transfer.taps import Seen

BARE = """
preset = "{preset}"
data = {{ name = "synthetic", train = 96 }}
[teacher]
model = "resnet8"
args = {{ width = 8 }}
epochs = 1
[student]
model = "resnet8"
args = {{ width = 4 }}
"""


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_applies_where_the_recipe_has_no_setting(preset: str, tmp_path: Path) -> None:
    path = tmp_path / "bare.toml"
    path.write_text(BARE.format(preset=preset))
    recipe = read_recipe(path, ["student.batch_size=7"])
    assert recipe.teacher.epochs == 1  # what the recipe says stands
    assert recipe.student.batch_size == 7
    assert recipe.student.epochs == PRESETS[preset]["student"]["epochs"]
    assert recipe.paraphraser is not None
    assert recipe.paraphraser.model_dump()["reconstruction"] == PRESETS[preset]["paraphraser"]["reconstruction"]
    assert recipe.terms["factor"].model_dump()["beta"] == PRESETS[preset]["transfer"]["factor"]["beta"]
    assert read_recipe(path, ["transfer.factor.beta=3"]).terms["factor"].model_dump()["beta"] == 3


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_runs(preset: str, tmp_path: Path, run: Run) -> None:
    path = tmp_path / "bare.toml"
    path.write_text(BARE.format(preset=preset))
    short = ["student.epochs=1", "paraphraser.epochs=1", "student.batch_size=24", "paraphraser.batch_size=24"]
    result = run("run", path, "teacher.batch_size=24", "augment.crop_padding=1", *short)
    assert result.code == 0, result.err
    if preset == "mmrazor":
        record = json.loads(Path("runs/bare/paraphraser/stage.json").read_text())
        assert list(record["in_channels"]) == ["layer3.0.conv2"]


def test_a_preset_adds_no_factor_term_to_other_terms(tmp_path: Path) -> None:
    path = tmp_path / "bare.toml"
    path.write_text(BARE.format(preset="authors") + "[transfer.kd]\n")
    assert list(read_recipe(path).terms) == ["kd"]


def test_a_preset_does_not_train_a_given_teacher(tmp_path: Path) -> None:
    path = tmp_path / "bare.toml"
    path.write_text(BARE.format(preset="authors").replace("epochs = 1", "weights = 'x.pth'"))
    assert read_recipe(path).teacher.epochs is None


def naive_reconstruction(kind: str, rebuilt: Tensor, feature: Tensor) -> float:
    total, count = 0.0, 0
    for one, other in zip(rebuilt.double(), feature.double(), strict=True):
        if kind == "l2-unit":
            one, other = one / one.pow(2).sum().sqrt(), other / other.pow(2).sum().sqrt()
        for a, b in zip(one.flatten().tolist(), other.flatten().tolist(), strict=True):
            total += abs(a - b) if kind == "l1" else (a - b) ** 2
            count += 1
    return {"l1": total / count, "l2": total / count, "l2-sum": total, "l2-unit": total / len(feature)}[kind]


@pytest.mark.parametrize("kind", ["l1", "l2", "l2-sum", "l2-unit"])
def test_each_reconstruction_is_its_formula(kind: Reconstruction) -> None:
    torch.manual_seed(0)
    teacher, paraphraser = build_model("resnet8", 3, width=2), Paraphraser(8)
    images = torch.randn(4, 3, 8, 8)
    method = ParaphraserTraining(teacher, "layer3", paraphraser, reconstruction=kind)
    feature = method.teacher(images).features["layer3"]
    expected = naive_reconstruction(kind, paraphraser(feature).detach(), feature)
    losses = method(images)
    assert losses["loss"].item() == pytest.approx(expected, rel=1e-4)
    losses["loss"].backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in paraphraser.parameters())


def test_repdistiller_compares_the_factors_spatial_attention() -> None:
    torch.manual_seed(0)
    term = FactorTransfer(Paraphraser(8), Translator(6, 4), "t", "s", attention=True)
    teacher, student = torch.randn(3, 8, 4, 4), torch.randn(3, 6, 2, 2)
    batch = Batch(torch.zeros(3), torch.zeros(3))
    target = term.target(Seen(None, {"t": teacher}))
    loss = term(Seen(None, {"s": student}), target, batch)
    own, other = term.translators[0](student), F.adaptive_avg_pool2d(target[0], 2)
    total = 0.0
    for a, b in zip(own, other, strict=True):
        maps = [f.pow(2).mean(0).flatten() for f in (a, b)]
        total += sum(abs(x - y) for x, y in zip(*[(m / m.norm()).tolist() for m in maps], strict=True))
    assert loss.item() == pytest.approx(total / (3 * 4), rel=1e-4)


def test_several_taps_have_a_paraphraser_and_a_weight_each() -> None:
    torch.manual_seed(0)
    paraphrasers, translators = [Paraphraser(8), Paraphraser(6, rate=0.5)], [Translator(4, 4), Translator(5, 3)]
    features = {"a": torch.randn(2, 8, 4, 4), "b": torch.randn(2, 6, 2, 2)}
    own = {"c": torch.randn(2, 4, 4, 4), "d": torch.randn(2, 5, 2, 2)}
    batch = Batch(torch.zeros(2), torch.zeros(2))

    def distance(parts: slice, weights: list[float]) -> float:
        term = FactorTransfer(
            paraphrasers[parts], translators[parts], ["a", "b"][parts], ["c", "d"][parts], tap_weights=weights
        )
        return term(Seen(None, own), term.target(Seen(None, features)), batch).item()

    both = distance(slice(0, 2), [1.0, 0.25])
    assert both == pytest.approx(distance(slice(0, 1), [1.0]) + 0.25 * distance(slice(1, 2), [1.0]), rel=1e-5)


def test_several_taps_train_end_to_end(tiny: Path, run: Run) -> None:
    taps = [
        "teacher.tap=['layer2', 'layer3']",
        "student.tap=['layer2', 'layer3']",
        "transfer.factor.tap_weights=[1, 2]",
    ]
    result = run("run", tiny, *[tap.replace("[1, 2]", "[1.0, 2.0]") for tap in taps])
    assert result.code == 0, result.err
    record = json.loads(Path("runs/tiny/paraphraser/stage.json").read_text())
    assert record["in_channels"] == {"layer2": 16, "layer3": 32}
    again = run("run", tiny, *taps)
    assert again.out.count("up to date") == 3


def test_maps_of_different_size_are_matched_end_to_end(tiny: Path, run: Run) -> None:
    # The student's layer2 is 4 x 4, the teacher's layer3 2 x 2.
    result = run("run", tiny, "student.tap=layer2", "student.learning_rate=0.01")
    assert result.code == 0, result.err
