"""Students as files: both formats and precisions, from the command line, and what is said of them."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from conftest import CIFAR10, Run, needs_cifar10, refused
from factor_transfer import Supervised, build_model
from factor_transfer.config.read import read_recipe
from factor_transfer.data import Batches
from factor_transfer.export import compare_teacher, parity
from factor_transfer.export.build import ExportOptions, build_file
from factor_transfer.export.formats.runtimes import open_file, run_over
from factor_transfer.export.graph import InputSpec, bare
from factor_transfer.export.qat import RoundedInput, RoundedWeight, _train, rounded
from factor_transfer.export.record import Teacher
from factor_transfer.files import sha256
from factor_transfer.models import Normalize
from factor_transfer.models.families.resnet import Projection
from factor_transfer.pipeline.artefact import find
from factor_transfer.pipeline.experiment import Experiment, load_network
from factor_transfer.state_dicts import read_weights

STUDENT = "student-factor-seed0"

executorch = pytest.mark.skipif(find_spec("executorch") is None, reason="the extra executorch is not installed")
onnx = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="the extra onnx is not installed")
ENDINGS = {"executorch": "pte", "onnx": "onnx"}


@pytest.fixture(scope="session")
def digits(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy to export from."""
    return Path(shutil.copytree(digits_run, tmp_path_factory.mktemp("exports") / "work"))


@pytest.fixture(scope="session")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a few of the official images, one epoch a stage."""
    from factor_transfer.cli import main

    work = tmp_path_factory.mktemp("cifar") / "work"
    part = work.with_name("cifar-10-batches-bin")
    part.mkdir()
    for path in (CIFAR10 / "cifar-10-batches-bin").glob("*.bin"):
        with path.open("rb") as whole:
            (part / path.name).write_bytes(whole.read(200 * 3073))
    small = ["teacher.model=resnet8", "data.validation=0.2", "student.model=resnet8", "student.args={width=8}"]
    small += [f"{stage}.epochs=1" for stage in ("teacher", "paraphraser", "student")]
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["run", "cifar10/resnet56-resnet20", f"data.root={part.parent}", *small, "--work-dir", str(work)])
    return work


def check(record: dict[str, Any], folder: Path, work: Path, images: int) -> None:
    """What ``export.json`` says is so."""
    summary = json.loads((work / "summary.json").read_text())
    figures, file = record["parity"], folder / record["file"]["name"]
    assert figures["images"] == images
    assert figures["top1_trained"] == pytest.approx(summary["student"]["top1"], abs=1e-3)
    assert record["teacher"]["top1"] == pytest.approx(summary["teacher"]["top1"], abs=1e-3)
    assert record["file"]["bytes"] == file.stat().st_size
    assert record["file"]["sha256"] == sha256(file)
    if record["precision"] == "float32":
        assert figures["largest_logit_difference"] <= 1e-4
        assert figures["equal_predictions"] == 100
    else:
        assert figures["largest_logit_difference"] > 0
        assert record["quantisation"]["calibration_images"] == 256
    student = find(work / STUDENT)
    assert student is not None
    assert record["student"]["fingerprint"] == student.fingerprint
    assert record["classes"] == student.record["classes"]
    for costs in (record["costs"], record["teacher"]["costs"]):
        assert 0 < costs["p50_ms"] <= costs["p95_ms"]
        assert costs["peak_bytes"] > 0
    ratios = record["ratios"]
    assert ratios["bytes"] == record["teacher"]["bytes"] / record["file"]["bytes"] > 1
    assert ratios["parameters"] > 1
    assert {"torch", "factor-transfer"} < set(record["versions"])


def check_digits(work: Path, folder: Path, name: str, precision: str, printed: str) -> None:
    assert {path.name for path in folder.iterdir()} == {"export.json", f"student.{ENDINGS[name]}"}
    record = json.loads((folder / "export.json").read_text())
    assert (record["format"], record["precision"]) == (name, precision)
    check(record, folder, work, 899)
    assert record["input"]["dtype"] == "uint8"
    assert [record["input"][key] for key in ("batch", "channels", "height", "width")] == [1, 1, 8, 8]
    assert f"{record['file']['bytes']:,}" in printed
    assert f"{record['parity']['top1_file']:.2f}" in printed


@onnx
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_the_digits_student_becomes_an_onnx_file(digits: Path, run: Run, precision: str) -> None:
    result = run("export", digits, "--format", "onnx", "--precision", precision, "--tolerance", "3")
    assert result.code == 0, result.err
    assert result.err == ""
    check_digits(digits, digits / STUDENT / "export" / f"onnx-{precision}", "onnx", precision, result.out)


@executorch
def test_the_digits_student_becomes_an_executorch_file(exported_digits: Path) -> None:
    """In 8 bits; ``test_any_number_of_normalised_images`` compares a float32 file with the network itself."""
    printed = (exported_digits / "int8.txt").read_text()
    check_digits(exported_digits / "runs/resnet20-resnet8", exported_digits / "device", "executorch", "int8", printed)


@onnx
@needs_cifar10
def test_a_cifar10_student_becomes_a_file(cifar: Path, run: Run, tmp_path: Path) -> None:
    result = run("export", cifar / STUDENT, "--format", "onnx", "--tolerance", "5", "--out", tmp_path / "out")
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    check(record, tmp_path / "out", cifar, 200)
    assert record["input"]["channels"] == 3


class Small(nn.Module):
    """A network that is soon exported, with the convolution that training must not see plainly."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.shortcut = Projection(6, 8, 1, 2, bias=False)
        self.fc = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.shortcut(F.relu(self.norm(self.stem(images)))).mean((2, 3)))


IMAGES = torch.randint(0, 256, (70, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
NORMALIZE = Normalize([0.4, 0.5, 0.6], [0.2, 0.25, 0.3])


@pytest.mark.parametrize("name", [pytest.param("executorch", marks=executorch), pytest.param("onnx", marks=onnx)])
def test_any_number_of_normalised_images(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    model = Small().eval()
    with torch.no_grad():
        expected = model(NORMALIZE(IMAGES))
    options = ExportOptions(name, "float32", InputSpec(raw=False, dynamic=True))  # type: ignore[arg-type]
    path = tmp_path / f"small.{ENDINGS[name]}"
    path.write_bytes(build_file(bare(model, NORMALIZE, IMAGES), NORMALIZE, IMAGES, options))
    file = open_file(path)
    assert (file.shape, file.dtype, file.dynamic) == ((3, 8, 8), torch.float32, True)
    for count in (1, 2, 64):
        said = file.run(NORMALIZE(IMAGES[:count]))
        assert torch.allclose(said, expected[:count], atol=1e-5)
    assert torch.allclose(run_over(file, [NORMALIZE(IMAGES)]), expected, atol=1e-5)


def test_batch_norms_are_folded_and_the_network_is_left_as_it_is() -> None:
    model = build_model("resnet8", 4, width=4).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    alone = bare(model, NORMALIZE, IMAGES)
    assert not any(isinstance(module, nn.BatchNorm2d | Projection) for module in alone.modules())
    with torch.no_grad():
        assert torch.allclose(alone(NORMALIZE(IMAGES)), model(NORMALIZE(IMAGES)), atol=1e-5)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_fine_tuning_without_8_bits_is_refused(digits: Path, run: Run) -> None:
    refused(run("export", digits, "--qat", "1"), "--qat fine-tunes for 8 bits; give --precision int8, too")


def test_the_record_of_a_teacher_without_a_classifier_can_be_read() -> None:
    assert Teacher.model_validate({"top1": None}).top1 is None


@onnx
def test_the_file_of_a_teacher_that_may_only_be_read_is_built_elsewhere(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_teacher, "build_file", lambda *_: b"a file")
    copied = Path(shutil.copytree(digits / "teacher", tmp_path / "work" / "teacher"))
    shutil.rmtree(copied / "export", ignore_errors=True)
    done = find(copied)
    assert done is not None
    experiment = Experiment(read_recipe("digits/resnet20-resnet8"), copied.parent, Console(quiet=True), "")
    network, normalize = load_network(done), Normalize(done.record["mean"], done.record["std"])
    (tmp_path / "elsewhere").mkdir()

    def path() -> Path:
        options = ExportOptions("onnx", "float32", InputSpec())
        return compare_teacher._teacher_file(experiment, done, network, normalize, options, tmp_path / "elsewhere")

    monkeypatch.setattr(compare_teacher, "holds", lambda _: True)
    assert path().parent == tmp_path / "elsewhere"
    assert not (copied / "export").exists()
    monkeypatch.setattr(compare_teacher, "holds", lambda _: False)
    (copied / "export").write_text("in the way")  # as if the folder could not be written to
    assert path().parent == tmp_path / "elsewhere"
    (copied / "export").unlink()
    assert path().is_relative_to(copied / "export")


@onnx
def test_fine_tuning_in_8_bits(digits: Path, run: Run, tmp_path: Path, no_measurement: None) -> None:
    teacher = (digits / "teacher" / "weights.safetensors").read_bytes()
    student = (digits / STUDENT / "weights.safetensors").read_bytes()
    arguments = ["export", digits, "--format", "onnx", "--precision", "int8", "--tolerance", "100"]
    result = run(*arguments, "--qat", "2", "--out", tmp_path / "tuned")
    assert result.code == 0, result.err
    assert "student in 8 bits  epoch 2/2  loss" in result.out
    assert "factor" in result.out
    assert "connectors  epoch" not in result.out  # those of the training are there
    assert json.loads((tmp_path / "tuned" / "export.json").read_text())["quantisation"]["qat_epochs"] == 2
    assert run(*arguments, "--out", tmp_path / "plain").code == 0
    assert sha256(tmp_path / "tuned" / "student.onnx") != sha256(tmp_path / "plain" / "student.onnx")
    assert (digits / "teacher" / "weights.safetensors").read_bytes() == teacher
    assert (digits / STUDENT / "weights.safetensors").read_bytes() == student


def test_fine_tuning_is_in_float32(tiny: Path, tmp_path: Path) -> None:
    """bfloat16 has as many bits as the rounded values, but not the same ones."""
    experiment = Experiment(read_recipe(tiny, ["precision=bf16-mixed"]), tmp_path, Console(quiet=True), "")
    network = experiment.build(experiment.recipe.student)
    batches = Batches(experiment.data.train, 24, 0)
    normalize, seen = experiment.normalize(experiment.statistics(experiment.recipe.student)), set()
    network.register_forward_hook(lambda *arguments: seen.add(arguments[-1].dtype))
    with rounded(network):
        _train(experiment, Supervised(network, normalize), network, batches, 1, "student in 8 bits", 0.1)
    assert seen == {torch.float32}


def test_values_are_rounded_to_8_bits() -> None:
    """Against the definition, written out; the gradient passes as if nothing had been rounded."""
    weight = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    scale = weight.detach().abs().amax((1, 2, 3), keepdim=True) / 127
    left = RoundedWeight()(weight)
    assert torch.allclose(left, (weight / scale).round() * scale, atol=1e-6)
    left.sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.ones_like(weight))
    x = torch.linspace(-1, 3, 50)
    module = RoundedInput()
    module(x)
    module.eval()
    assert (module(x) - x).abs().max() <= 4 / 255 / 2 + 1e-6
    assert module(torch.tensor([9.0])) == pytest.approx(3, abs=0.02)  # beyond what was seen in training


def test_rounding_leaves_no_hooks_behind() -> None:
    model = Small()
    keys = list(model.state_dict())
    with rounded(model):
        assert set(model.state_dict()) != set(keys)
    assert set(model.state_dict()) == set(keys)
    assert type(model.stem) is nn.Conv2d


@onnx
def test_a_rejected_file_gets_another_name(
    digits: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_measurement: None
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(parity, "CLOSE", 0.0)
        result = run("export", digits, "--format", "onnx", "--out", out)
    refused(result, "was rejected: its logits differ", r"student\.onnx\.rejected")
    assert {path.name for path in out.iterdir()} == {"student.onnx.rejected", "export.json.rejected"}
    assert json.loads((out / "export.json.rejected").read_text())["accepted"] is False
    assert run("export", digits, "--format", "onnx", "--out", out).code == 0
    assert {path.name for path in out.iterdir()} == {"student.onnx", "export.json"}


@pytest.mark.parametrize(
    ("precision", "difference", "top1", "refusal"),
    [
        ("float32", 9e-4, 90.0, None),
        ("float32", 2e-3, 90.0, "logits differ"),
        ("float32", float("nan"), 90.0, "logits differ"),
        ("int8", 3.0, 89.1, None),
        ("int8", 3.0, 88.9, "loses 1.10 points"),
    ],
)
def test_when_a_file_is_rejected(precision: str, difference: float, top1: float, refusal: str | None) -> None:
    figures = {"largest_logit_difference": difference, "top1_trained": 90.0, "top1_file": top1}
    said = parity.verdict(figures, precision, 1.0)
    assert said is None if refusal is None else refusal in str(said)


def test_the_students_recipe_is_beside_it(digits_run: Path) -> None:
    from factor_transfer.config.read import as_toml, read_recipe

    path = digits_run / STUDENT / "recipe.toml"
    assert as_toml(read_recipe(path)) == path.read_text()
    assert read_recipe(path).student.epochs == 4
    student = find(digits_run / STUDENT)
    assert student is not None
    assert set(load_network(student).state_dict()) == set(read_weights(student.weights))
