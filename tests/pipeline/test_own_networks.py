"""Networks of one's own, through the command line: what can be used is, the rest is refused before any training."""

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import own_networks
import pytest
import torch
from torch import nn

from conftest import Run, refused
from factor_transfer import CRD, Distillation, FactorTransfer, Pair, Paraphraser, Side, Translator
from factor_transfer.config.read import read_recipe
from factor_transfer.data import Batch
from factor_transfer.errors import InputError
from factor_transfer.methods import Supervised, Teacher
from factor_transfer.models.inference import copy_network, eval_mode, fix_computed_weights
from factor_transfer.models.outputs import logits_of
from factor_transfer.pipeline.experiment import named_code
from factor_transfer.pipeline.weights.trial import leave_out_unused, try_network
from factor_transfer.taps import Taps

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
COMPUTED = ["pruned", "weight_norm", "spectral_norm", "parametrized"]  # weights that are computed before each pass
pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")


@pytest.fixture
def own(tiny: Path) -> Path:
    shutil.copy(own_networks.__file__, "nets.py")
    return tiny


def of(side: str, name: str) -> list[str]:
    return [f"{side}.model=nets:{name}", f"{side}.args={{}}", f"{side}.epochs=1"]


@pytest.mark.parametrize("name", ["in_a_tuple", "in_a_dict", "in_an_object", "unused", *COMPUTED])
def test_usable_networks_work_as_teacher_and_student(name: str, own: Path, run: Run) -> None:
    done = run("run", own, *of("teacher", name), *of("student", name), "paraphraser.epochs=1")
    assert done.code == 0, done.err
    assert run("test", own, "runs/tiny", *of("teacher", name), *of("student", name)).code == 0


@pytest.mark.parametrize("side", ["teacher", "student"])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("in_a_dict_of_another_name", "its forward returns a dict with scores; it must return logits"),
        ("nothing", "its forward returns a NoneType"),
        (
            "in_evaluation_alone",
            r"in a training step on 2 images of size 8×8 it raises RuntimeError: shape '\[7, -1\]'",
        ),
        ("with_a_key_error", r"it raises KeyError: 'no such\\nkey'; --debug shows the traceback"),
        ("more_classes", r"for 2 images and 4 classes its logits have the shape \(2, 8\)"),
        ("classes_named", r"its logits have the shape \(2,\)"),
    ],
)
def test_unusable_networks_are_refused_before_training(name: str, reason: str, side: str, own: Path, run: Run) -> None:
    command = "run" if side == "student" else "teacher"
    done = run(command, own, *of(side, name))
    refused(done, f"network 'nets:{name}' cannot be used: ", reason)
    assert not Path("runs/tiny/teacher").exists()


def test_a_teacher_with_unusable_features_is_refused(own: Path, run: Run) -> None:
    dead = [*of("teacher", "dead"), "teacher.learning_rate=1e-9", "teacher.tap=last"]
    refused(run("run", own, *dead), "its features at last are zero for the first 16 training images")
    state = own_networks.plain(4, 3).state_dict()
    state["last.1.weight"] *= 1e30
    state["fc.weight"] *= 1e30
    torch.save(state, "huge.pth")
    huge = 'teacher={model="nets:plain", weights="huge.pth"}'
    refused(run("run", own, huge, "--work-dir", "huge"), "its logits are not finite for the training images")


def test_the_trial_leaves_the_network_unchanged() -> None:
    torch.manual_seed(3)
    model = own_networks.spectral_norm(4, 3).train()
    model.get_submodule("stem").eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    try_network("mine", model, IMAGES, 4)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    assert not model.get_submodule("stem").training
    with pytest.raises(InputError, match="3 classes"):
        try_network("mine", model, IMAGES, 3)


def test_parameters_without_a_gradient_are_left_out() -> None:
    model = own_networks.unused(4, 3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    left = leave_out_unused(Supervised(model).train(), Batch(IMAGES, torch.arange(4)))
    assert left == ["model.model.auxiliary.weight", "model.model.auxiliary.bias"]
    assert [key for key, part in model.named_parameters() if not part.requires_grad] == [
        "auxiliary.weight",
        "auxiliary.bias",
    ]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_trial_leaves_buffers_unchanged_that_are_replaced() -> None:
    """CRD estimates its constants from the first batch, which must not be that of the trial."""
    teacher, student = own_networks.plain(4, 3), own_networks.plain(4, 3)
    labels = torch.arange(4)
    pair = Pair(Side(teacher, ("last",), IMAGES), Side(student, ("last",), IMAGES), {}, labels)
    crd = CRD.between(pair, negatives=2, dimension=4)
    method = Distillation(student, teacher, {"crd": crd}).train()
    before = {key: value.clone() for key, value in method.state_dict().items()}
    leave_out_unused(method, Batch(IMAGES[:4], labels, labels))
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())
    method(IMAGES[:4], labels, labels)
    assert any(not torch.equal(value, before[key]) for key, value in method.state_dict().items() if "crd" in key)


def test_code_that_a_recipe_names_may_run_for_the_student_before_and_after_fine_tuning(tiny: Path) -> None:
    recipe = read_recipe(tiny, ["student={model='mine:build', epochs=1}"])
    for stage, allowed in (("student-kd-seed0", True), ("untuned-kd-seed0", True), ("teacher", False)):
        done = Mock(record={"stage": stage, "model": {"name": "mine:build", "num_classes": 4, "in_channels": 3}})
        assert named_code(recipe, done) == (["mine:build"] if allowed else [])


def test_the_trial_leaves_frozen_modules_unchanged() -> None:
    def method() -> Distillation:
        torch.manual_seed(0)
        teacher, student = own_networks.plain(4, 3), own_networks.plain(4, 3)
        for _ in range(3):
            teacher(1 + IMAGES)  # statistics that folding takes into account
        term = FactorTransfer(Paraphraser(12), Translator(12, 6), "last", "last")
        return Distillation(student, Teacher(teacher.eval(), None, IMAGES), {"factor": term}).train()

    tried, plain = method(), method()
    assert leave_out_unused(tried, Batch(IMAGES, torch.arange(4))) == []
    losses = [one(IMAGES, torch.arange(4))["loss"] for one in (tried, plain)]
    assert torch.equal(*losses)


@pytest.mark.parametrize("name", COMPUTED)
def test_computed_weights_can_be_copied_and_fixed(name: str) -> None:
    torch.manual_seed(0)
    model: nn.Module = getattr(own_networks, name)(4, 3)
    model(IMAGES).sum().backward()  # as after a training
    model.eval()
    copied = copy_network(model)
    fix_computed_weights(copied)
    assert {key for key, _ in copied.named_parameters()} == {
        key for key, _ in own_networks.plain(4, 3).named_parameters()
    }
    with torch.no_grad():
        assert torch.allclose(copied(IMAGES), model(IMAGES), atol=1e-6)


@pytest.mark.parametrize("name", ["in_a_tuple", "in_a_dict", "in_an_object"])
def test_the_library_takes_them_too(name: str) -> None:
    teacher, student = getattr(own_networks, name)(4, 3), getattr(own_networks, name)(4, 3)
    term = FactorTransfer(Paraphraser(12), Translator(12, 6), "last", "last")
    losses = Distillation(student, Teacher(teacher, None, IMAGES), {"factor": term})(IMAGES, torch.arange(4))
    losses["loss"].backward()
    network = Taps(student)
    with eval_mode(network):
        # Images in another memory format are rounded differently.
        assert torch.allclose(network(IMAGES).logits, logits_of(student(IMAGES)), atol=1e-5)


def test_the_logits_in_outputs_of_various_types() -> None:
    logits = torch.zeros(2, 3)
    good: tuple[Any, ...] = (logits, (logits, 1), [logits], {"logits": logits}, own_networks.Answer(logits))
    for output in good:
        assert logits_of(output) is logits
    bad: tuple[tuple[Any, str], ...] = (
        (None, "NoneType"),
        ({}, "dict with no keys"),
        ({"a": logits, "b\x1b": 1}, r"dict with a, b\\x1b"),
        ((1, logits), "tuple of int, Tensor"),
        ([], "list of length 0"),
        (own_networks.Answer(None), "Answer"),  # type: ignore[arg-type]
    )
    for output, kind in bad:
        with pytest.raises(InputError, match=f"returns a {kind};"):
            logits_of(output)


def test_an_export_of_pruned_weights(own: Path, run: Run, no_measurement: None) -> None:
    pytest.importorskip("onnx")
    assert run("run", own, *of("student", "pruned"), "teacher.epochs=1", "paraphraser.epochs=1").code == 0
    for precision in ("float32", "int8"):
        words = ["--format", "onnx", "--precision", precision, "--trust-code", "nets:pruned"]
        done = run("export", "runs/tiny", *words)
        assert done.code == 0, done.err
    record = json.loads(Path("runs/tiny/student-factor-seed0/export/onnx-float32/export.json").read_text())
    assert record["file"]["bytes"] > 0
