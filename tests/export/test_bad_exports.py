"""Runs, networks and libraries that cannot become a file: one clear message, exit code 2, nothing half-written."""

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from conftest import Run, refused
from factor_transfer.data import Split
from factor_transfer.errors import InputError
from factor_transfer.export.build import ExportOptions, build_file
from factor_transfer.export.formats import optional as libraries
from factor_transfer.export.formats.runtimes import open_file
from factor_transfer.export.graph import InputSpec, Program, capture
from factor_transfer.export.quantize import calibration
from factor_transfer.models import Normalize

STUDENT = "student-factor-seed0"
IMAGES = torch.zeros(4, 3, 8, 8)
onnx = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="the extra onnx is not installed")


class Choosing(nn.Module):
    """What it does depends on what it sees, which no file can hold."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum().item() > 0 else x


class Rare(nn.Module):
    """An operator that the formats do not have."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svdvals(x)


def around(layer: nn.Module) -> nn.Module:
    """A network with an odd layer."""
    model = nn.Sequential()
    model.add_module("stem", nn.Conv2d(3, 4, 1))
    model.add_module("odd", layer)
    return model.eval()


def test_a_network_whose_path_depends_on_its_values() -> None:
    with pytest.raises(InputError, match=r"cannot be exported: layer odd \(Choosing\), at item: "):
        capture(Program(around(Choosing()), None), IMAGES, dynamic=False)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("executorch", marks=pytest.mark.skipif(find_spec("executorch") is None, reason="no executorch")),
        pytest.param("onnx", marks=onnx),
    ],
)
def test_an_operator_that_a_format_does_not_have(name: str, tmp_path: Path) -> None:
    options = ExportOptions(name, "float32", InputSpec(raw=False))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"operator aten\.\w*svd.* of layer odd") as caught:
        build_file(around(Rare()), Normalize([0.0] * 3, [1.0] * 3), IMAGES, options)
    assert len(str(caught.value).splitlines()) < 10


def test_a_run_that_is_not_finished_or_none(digits_run: Path, run: Run, tmp_path: Path) -> None:
    refused(run("export", tmp_path / "nowhere"), "nowhere does not exist; give the folder")
    refused(run("export", tmp_path), "contains no student")
    refused(run("export", digits_run / "teacher"), "contains a teacher, not a student")
    work = Path(shutil.copytree(digits_run, tmp_path / "work"))
    (work / STUDENT / "recipe.toml").unlink()
    refused(run("export", work), r"has no recipe\.toml", "Repeat its training command")
    record = json.loads((work / STUDENT / "stage.json").read_text())
    (work / STUDENT / "stage.json").write_text(json.dumps(record | {"finished": False}))
    for command in (["export", work], ["package", work, "--out", tmp_path / "out"], ["predict", work, tmp_path]):
        refused(run(*command), "student-factor-seed0 is not finished")
    assert not (work / STUDENT / "export").exists()
    shutil.copytree(work / STUDENT, work / "student-kd-seed0")
    (work / "summary.json").unlink()
    refused(run("export", work), "contains several students; give one: .*factor-seed0, .*kd-seed0")


def test_a_teacher_that_was_made_anew(digits_run: Path, run: Run, tmp_path: Path) -> None:
    work = Path(shutil.copytree(digits_run, tmp_path / "work"))
    path = work / "teacher" / "stage.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mean": [0.9]}))
    refused(run("export", work), "the teacher in .* is not the one that student-factor-seed0 learned from")


def test_bad_options_are_refused(digits_run: Path, run: Run) -> None:
    refused(run("export", digits_run, "--format", "tflite"), "unknown format 'tflite'", "executorch, onnx")
    refused(run("export", digits_run, "--precision", "int4"), "unknown precision 'int4'; did you mean 'int8'")
    refused(run("export", digits_run, "data.name=cifar10"), "data|CIFAR")


@pytest.mark.parametrize("name", ["executorch", "onnx"])
def test_a_missing_extra(digits_run: Path, run: Run, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(libraries, "installed", lambda library: False)
    install = rf"is not installed; {sys.executable} -m pip install 'factor-transfer\[{name}\]'"
    refused(run("export", digits_run, "--format", name), install)
    assert not (digits_run / STUDENT / "export").exists()


def test_too_few_images_to_calibrate_by(digits_run: Path, run: Run) -> None:
    result = run("export", digits_run, "--format", "onnx", "--precision", "int8", "--calibration", "31")
    if find_spec("onnxruntime"):
        refused(
            result, "31 calibration images are too few", "at least 32 of the 718 training images, with --calibration N"
        )
    split = Split(torch.zeros(40, 1, 2, 2, dtype=torch.uint8), torch.zeros(40, dtype=torch.int64))
    assert len(calibration(split, 256)) == 40
    with pytest.raises(InputError, match="20 calibration images are too few"):
        calibration(split.subset(torch.arange(20)), 256)


@onnx
def test_a_folder_that_holds_another_students_file(digits_run: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "export.json").write_text('{"student": {"fingerprint": "another"}}')
    refused(
        run("export", digits_run, "--format", "onnx", "--out", tmp_path / "out"), "contains a file of another student"
    )
    (tmp_path / "file").write_text("")
    refused(run("export", digits_run, "--format", "onnx", "--out", tmp_path / "file"), "is not a folder")


@pytest.mark.parametrize("ending", ["pte", "onnx"])
@pytest.mark.parametrize("text", [b"", b"half a file" * 100])
def test_damaged_files(tmp_path: Path, ending: str, text: bytes) -> None:
    pytest.importorskip({"pte": "executorch", "onnx": "onnxruntime"}[ending])
    path = tmp_path / f"student.{ending}"
    path.write_bytes(text)
    with pytest.raises(InputError, match=rf"student\.{ending} cannot be loaded; it is damaged, or of another kind: \S"):
        open_file(path)
    assert sys.stderr is not None
