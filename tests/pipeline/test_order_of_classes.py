"""Teachers that were trained for the same classes in another order, or for others, through the command line."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from conftest import Run, refused, unwrapped
from factor_transfer import build_model
from factor_transfer.models.classifier import find_classifier, reorder_outputs
from factor_transfer.models.external import zoo_classes
from factor_transfer.pipeline.weights.classes import output_order
from factor_transfer.state_dicts import read_weights

RECIPE = """
name = "order"
[data]
name = "folder"
root = "pictures"
validation = 0.25
[teacher]
model = "resnet8"
args = { width = 8 }
epochs = 4
batch_size = 12
learning_rate = 0.05
[student]
model = "resnet8"
args = { width = 4 }
epochs = 1
batch_size = 12
[transfer.kd]
"""
NUMBERS = {"1": (220, 30, 30), "2": (30, 220, 30), "10": (30, 30, 220)}
NAMES = {"ant": (220, 30, 30), "bee": (30, 220, 30), "cat": (30, 30, 220)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A teacher's weights that tell red, green and blue apart, in that order."""
    torch.manual_seed(0)
    model = build_model("resnet8", 3, width=8).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9)
    labels = torch.arange(24) % 3
    images = 0.5 * torch.randn(24, 3, 16, 16)
    images[torch.arange(24), labels] += 2
    for _ in range(30):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.state_dict()


def recipe(classes: dict[str, tuple[int, int, int]]) -> Path:
    """A recipe of pictures that are told apart by their colour."""
    generator = np.random.default_rng(0)
    for name, colour in classes.items():
        for split, count in (("train", 16), ("test", 6)):
            folder = Path("pictures", split, name)
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = generator.normal(colour, 20, (16, 16, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    Path("order.toml").write_text(RECIPE)
    return Path("order.toml")


def given_teacher(*more: str) -> list[str]:
    table = 'teacher={model="resnet8", args={width=8}, weights="teacher.pth", mean=[0.4,0.4,0.4], std=[0.3,0.3,0.3]'
    return [", ".join([table, *more]) + "}"]


def test_the_numeric_order_of_the_names_is_tried(trained: dict[str, Any], run: Run) -> None:
    path = recipe(NUMBERS)  # the folder's order is 1, 10, 2
    torch.save(trained, "teacher.pth")
    done = run("run", path, *given_teacher())
    assert done.code == 0, done.err
    assert "Warning: the teacher classifies 33.3 % of 12 validation images correctly; with its outputs in" in unwrapped(
        done.out
    )
    assert 'teacher.classes=["1", "2", "10"]' in unwrapped(done.out)
    checked = run("check", path, *given_teacher(), "--work-dir", "other")
    assert 'teacher.classes=["1", "2", "10"]' in unwrapped(checked.out)
    mended = run("run", path, *given_teacher('classes=["1","2","10"]'))
    assert mended.code == 0, mended.err
    assert "are permuted to the order of the data's classes" in unwrapped(mended.out)
    assert "Warning: the teacher" not in mended.out
    assert json.loads(Path("runs/order/summary.json").read_text())["teacher"]["top1"] == 100.0
    tested = run("test", path, "teacher.pth", *given_teacher('classes=["1","2","10"]'))
    assert "top-1 100.00 %" in tested.out
    assert "top-1 33.33 %" in run("test", path, "teacher.pth", *given_teacher()).out
    # Of several weights in a file, it takes those that the recipe names.
    torch.save({"model": build_model("resnet8", 3, width=8).state_dict(), "model_ema": trained}, "teacher.pth")
    named = given_teacher('classes=["1","2","10"]', 'weights_key="model_ema"')
    assert "top-1 100.00 %" in run("test", path, "teacher.pth", *named).out


def test_any_other_order_is_found(trained: dict[str, Any], run: Run) -> None:
    path = recipe(NAMES)
    moved = {key: value[[1, 2, 0]] if key.startswith("fc.") else value for key, value in trained.items()}
    torch.save(moved, "teacher.pth")
    done = run("teacher", path, *given_teacher())
    assert "with its outputs in another order it would classify 100.0 % correctly" in unwrapped(done.out)
    assert 'teacher.classes=["bee", "cat", "ant"]' in unwrapped(done.out)
    right = run("teacher", path, *given_teacher('classes=["bee","cat","ant"]'))
    assert "Warning" not in right.out


def test_a_correct_teacher_and_an_untrained_one(trained: dict[str, Any], run: Run) -> None:
    path = recipe(NAMES)
    torch.save(trained, "teacher.pth")
    assert "Warning" not in run("teacher", path, *given_teacher()).out
    torch.manual_seed(1)
    torch.save(build_model("resnet8", 3, width=8).state_dict(), "teacher.pth")
    done = run("teacher", path, *given_teacher())
    assert "chance is 33.3 %: check its classes" in unwrapped(done.out)
    assert "another order" not in done.out


def test_a_stage_of_another_order_is_permuted(trained: dict[str, Any], run: Run) -> None:
    path = recipe(NAMES)
    torch.save(trained, "teacher.pth")
    assert run("teacher", path, *given_teacher(), "--work-dir", "first").code == 0
    stage = Path("first/teacher/stage.json")
    record = json.loads(stage.read_text())
    record["classes"] = ["cat", "ant", "bee"]
    stage.write_text(json.dumps(record))
    own = given_teacher()[0].replace("teacher.pth", "first/teacher/weights.safetensors")
    done = run("teacher", path, own)
    assert done.code == 0, done.err
    assert "its outputs (cat, ant, bee) are permuted" in unwrapped(done.out)
    weights = read_weights(Path("runs/order/teacher/weights.safetensors"))
    assert torch.equal(weights["fc.weight"], trained["fc.weight"][[1, 2, 0]])
    record["classes"] = ["cat", "ant", "dog"]
    stage.write_text(json.dumps(record))
    refused(run("teacher", path, own, "--work-dir", "second"), "cat, ant, dog")


def test_given_names_must_be_those_of_the_data(trained: dict[str, Any], run: Run) -> None:
    path = recipe(NAMES)
    torch.save(trained, "teacher.pth")
    refused(
        run("teacher", path, *given_teacher('classes=["ant","bee","dog"]')),
        "the teacher's outputs are named ant, bee, dog, but the data's classes ant, bee, cat",
        'set teacher.classes="data"',
    )
    refused(run("teacher", path, *given_teacher('classes=["ant"]')), "names 1 outputs, but the data has 3 classes")
    assert run("teacher", path, *given_teacher('classes="data"')).code == 0


def hugging_face(folder: Path, names: list[str]) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        image_size=16, patch_size=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    config.id2label, config.label2id = dict(enumerate(names)), {name: number for number, name in enumerate(names)}
    torch.manual_seed(0)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "ViTImageProcessor",
                **{"do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]},
                **{"do_resize": True, "size": {"height": 224, "width": 224}, "resample": 2},
            }
        )
    )


@pytest.mark.usefixtures("torchvision_operators")
def test_names_that_are_stored_with_a_zoos_weights(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(NAMES)
    table = 'teacher={model="transformers:hf", weights="pretrained"CLASSES}'
    hugging_face(Path("hf"), ["Cat", "ant", "bee"])
    done = run("teacher", path, table.replace("CLASSES", ""))
    assert done.code == 0, done.err
    assert "its outputs (Cat, ant, bee) are permuted" in unwrapped(done.out)
    assert "was trained with another preprocessing (size 224, resample 2)" in unwrapped(done.out)
    assert "the images stay 16 pixels wide" in unwrapped(done.out)
    weights = read_weights(Path("runs/order/teacher/weights.safetensors"))
    stored = read_weights(Path("hf/model.safetensors"))
    assert torch.equal(weights["classifier.weight"], stored["classifier.weight"][[1, 2, 0]])
    hugging_face(Path("hf"), ["wolf", "ant", "bee"])
    capsys.readouterr()  # what transformers says of writing
    refused(run("teacher", path, table.replace("CLASSES", ""), "--work-dir", "b"), "named wolf, ant, bee")
    assert run("teacher", path, table.replace("CLASSES", ', classes="data"'), "--work-dir", "b").code == 0
    on = run("teacher", path, table.replace("CLASSES", ", epochs=1, batch_size=12"), "--work-dir", "c")
    assert on.code == 0, on.err
    assert "the names of its outputs (wolf, ant, bee) differ" in unwrapped(on.out)


@pytest.mark.usefixtures("torchvision_operators")
def test_the_names_that_timm_stores() -> None:
    model: Any = build_model("timm:test_resnet", 3)
    assert zoo_classes("timm:test_resnet", model) is None
    model.pretrained_cfg["label_names"] = ["bee", "ant", "cat"]
    assert zoo_classes("timm:test_resnet", model) == ["bee", "ant", "cat"]
    assert zoo_classes("resnet8", build_model("resnet8", 3)) is None


@given(st.permutations(["a", "B b", "c_c", "d"]), st.randoms(use_true_random=False))
def test_orders_are_permutations_by_name(names: list[str], shuffle: random.Random) -> None:
    stored = [name.upper().replace(" ", "_") for name in names]
    shuffle.shuffle(stored)
    order = output_order(stored, names)
    assert order is not None
    assert sorted(order) == [0, 1, 2, 3]
    for name, number in zip(names, order, strict=True):
        assert stored[number].casefold().replace("_", " ") == name.casefold().replace("_", " ")
    assert output_order([*stored[:3], "e"], names) is None
    assert output_order(["a", "A"], ["A", "a"]) == [1, 0]  # of names that differ in case alone, case counts


def test_a_classifier_that_is_no_single_layer_is_left_alone() -> None:
    class Mean(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.mean((2, 3))
            return (self.one(x) + self.two(x)) / 2

    model, images = Mean(), torch.randn(2, 3, 4, 4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert find_classifier(model, images) is None
    assert not reorder_outputs(model, images, [2, 1, 0])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
