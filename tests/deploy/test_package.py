"""The folder to share: what is in it, and that it is enough."""

import json
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from conftest import Run, refused
from factor_transfer import build_model, load_student
from factor_transfer.config.read import read_recipe
from factor_transfer.data import open_data
from factor_transfer.deploy.model_card import _requirement
from factor_transfer.errors import InputError
from factor_transfer.files import sha256
from factor_transfer.models import Normalize
from factor_transfer.pipeline.artefact import find
from factor_transfer.pipeline.experiment import load_network
from factor_transfer.state_dicts import read_weights

STUDENT = "student-factor-seed0"


@pytest.fixture(scope="session")
def shared(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from factor_transfer.cli import main

    out = tmp_path_factory.mktemp("shared") / "student"
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["package", str(digits_run), "--out", str(out)])
    return out


def test_the_packaged_student_gives_the_same_answers(digits_run: Path, shared: Path) -> None:
    done = find(digits_run / STUDENT)
    assert done is not None
    student = load_student(shared)
    images = open_data("digits").test().images[:20]
    with torch.no_grad():
        expected = load_network(done).eval()(Normalize(done.record["mean"], done.record["std"])(images))
        assert torch.equal(student(images), expected)
    with pytest.raises(InputError, match=r"uint8 in 0\.\.255, but got torch\.float32"):
        student(images / 255)
    assert not student.training
    assert student.classes == tuple("0123456789")
    assert student.image == (1, 8, 8)


def test_neither_teacher_nor_translator_is_needed(shared: Path) -> None:
    """In a process of its own: nothing that trains is even imported."""
    code = (
        "import sys, factor_transfer, torch\n"
        "student = factor_transfer.load_student(sys.argv[1])\n"
        "student(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))\n"
        "print(*(name for name in sys.modules if name.startswith('factor_transfer.')))"
    )
    result = subprocess.run([sys.executable, "-c", code, shared], capture_output=True, text=True, check=True)
    imported = set(result.stdout.split())
    assert "factor_transfer.deploy.student" in imported
    assert not {name for name in imported if name.split(".")[1] in ("methods", "engine", "stages", "recipe", "taps")}


def test_the_files_of_a_package(digits_run: Path, shared: Path) -> None:
    assert {path.name for path in shared.iterdir()} == {"README.md", "config.json", "model.safetensors", "recipe.toml"}
    assert read_recipe(shared / "recipe.toml").student.model == "resnet8"
    summary = json.loads((digits_run / "summary.json").read_text())
    card = (shared / "README.md").read_text()
    header = card.split("---\n")[1]
    assert "library_name: factor-transfer\npipeline_tag: image-classification\n" in header
    assert f"value: {summary['student']['top1'] / 100:.6g}" in header
    assert f"| student | {summary['student']['top1']:.2f} | {summary['student']['parameters']:,} |" in card
    assert f"| teacher | {summary['teacher']['top1']:.2f} |" in card
    (code,) = [part.split("```")[0] for part in card.split("```python\n")[1:]]
    result = subprocess.run([sys.executable, "-c", code], cwd=shared, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() in set("0123456789")


def test_the_card_has_the_command_to_install_and_links(shared: Path) -> None:
    card = (shared / "README.md").read_text()
    assert "```\npip install factor-transfer\n```" in card
    assert "[Factor Transfer](https://arxiv.org/abs/1802.04977)" in card
    assert card.count("](http") == 1
    assert _requirement({"model": {"name": "timm:resnet18"}}) == "'factor-transfer[timm]'"
    assert _requirement({"model": {"name": "mine:build"}}) == "factor-transfer"


def test_the_card_names_the_images(digits_run: Path, run: Run, tmp_path: Path) -> None:
    work = Path(shutil.copytree(digits_run, tmp_path / "work"))
    recipe = work / STUDENT / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('name = "digits"', 'name = "digits"\ntitle = "Zahlen: \\"8×8\\"\\n"'))
    assert run("package", work, "--out", tmp_path / "out").code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    title = 'Zahlen: "8×8"\\n'  # the line break is escaped
    assert f"# resnet8-{title}\n" in card
    assert f"It was trained on {title} by Factor Transfer" in card
    names = [json.loads(line.partition(": ")[2]) for line in card.splitlines() if line.startswith('      name: "')]
    assert names == [title]
    assert run("test", tmp_path / "work").code == 0  # the title changes nothing else
    assert "up to date" in run("train", recipe, "--work-dir", work).out
    Path("birds.toml").write_text(recipe.read_text())
    pictures = ["data.name=folder", "data.root=pictures/birds/"]
    given = Path("birds.toml").read_text()
    Path("birds.toml").write_text(re.sub(r"\[data\][^[]*", "[data]\nvalidation = 0.2\n\n", given))
    assert read_recipe("birds.toml", pictures).data.display_name == "birds"
    assert read_recipe("birds.toml", [*pictures, "data.title=My birds"]).data.display_name == "My birds"


def test_figures_of_exported_files_are_packaged_and_those_of_another_student_refused(
    digits_run: Path, run: Run, tmp_path: Path
) -> None:
    work = Path(shutil.copytree(digits_run, tmp_path / "work"))
    folder = work / STUDENT / "export" / "onnx-float32"
    folder.mkdir(parents=True)
    (folder / "student.onnx").write_bytes(b"a file")
    done = find(work / STUDENT)
    assert done is not None
    record: dict[str, Any] = {
        "file": {"name": "student.onnx", "bytes": 6, "sha256": sha256(folder / "student.onnx")},
        "student": {"fingerprint": done.fingerprint},
        "parity": {
            "images": 899,
            "top1_trained": 12.34,
            "top1_file": 12.34,
            "equal_predictions": 100.0,
            "largest_logit_difference": 1e-6,
        },
        "classes": [str(number) for number in range(10)],
        "input": {"dtype": "uint8", "channels": 1, "height": 8, "width": 8, "mean": [0.3], "std": [0.4]},
        "format": "onnx",
        "precision": "float32",
        "costs": {"p50_ms": 0.5},
        "machine": {"processor": "of this test"},
    }
    (folder / "export.json").write_text(json.dumps(record))
    assert run("package", work, "--out", tmp_path / "a").code == 0
    assert json.loads((tmp_path / "a" / "export.json").read_text()) == {"onnx-float32": record}
    assert "| onnx-float32 | 12.34 | 100.00 % |" in (tmp_path / "a" / "README.md").read_text()
    elsewhere = Path(shutil.move(folder, tmp_path / "elsewhere"))
    assert run("package", work, "--out", tmp_path / "c", "--export", elsewhere).code == 0
    assert (tmp_path / "c" / "export.json").read_bytes() == (tmp_path / "a" / "export.json").read_bytes()
    shutil.move(elsewhere, folder)
    for damage in ({"student": {"fingerprint": "another"}}, {"file": record["file"] | {"sha256": "another"}}):
        (folder / "export.json").write_text(json.dumps(record | damage))
        refused(run("package", work, "--out", tmp_path / "b"), r"student\.onnx was exported from another student")
    assert not (tmp_path / "b").exists()


def test_keys_of_timm(run: Run, tmp_path: Path, tiny: Path, torchvision_operators: None) -> None:
    pytest.importorskip("timm")
    tiny.write_text(tiny.read_text().replace("resnet8", "resnet18").replace("args = { width = 4 }\n", ""))
    smaller = ["student.epochs=1", "transfer.method=student"]
    assert run("train", tiny, *smaller).code == 0
    work = Path("runs/tiny")
    for library in ("timm", "torchvision"):
        assert run("package", work, "--out", tmp_path / library, "--to", library).code == 0
        state = read_weights(tmp_path / library / f"{library}.safetensors")
        theirs = build_model(f"{library}:resnet18", 4)
        theirs.load_state_dict(state)
        student = load_student(tmp_path / library)
        images = torch.rand(2, 3, 16, 16)
        with torch.no_grad():
            assert torch.allclose(theirs.eval()(images), student.model(images), atol=1e-4)


def test_bad_packages(digits_run: Path, shared: Path, run: Run, tmp_path: Path) -> None:
    refused(run("package", digits_run, "--out", shared), "exists already and is not empty")
    refused(run("package", digits_run, "--out", tmp_path / "x", "--to", "keras"), "unknown library 'keras'")
    refused(
        run("package", digits_run, "--out", tmp_path / "x", "--to", "timm"), "timm has no network like this resnet8"
    )
    assert not (tmp_path / "x").exists()
    damaged = Path(shutil.copytree(shared, tmp_path / "damaged"))
    (damaged / "model.safetensors").write_bytes((shared / "model.safetensors").read_bytes()[:-4])
    refused(run("predict", damaged, damaged), "is damaged, or belongs to another student")
    (damaged / "config.json").write_text("{}")
    refused(run("predict", damaged, damaged), r"config\.json is damaged")
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load_student(tmp_path)


@pytest.fixture
def of_code(shared: Path, tmp_path: Path) -> Path:
    """A package whose network is built by external code, which leaves a trace where it runs."""
    folder = Path(shutil.copytree(shared, tmp_path / "of code"))
    config = json.loads((folder / "config.json").read_text())
    config["model"] = {"name": "tracer:network", "num_classes": 10, "in_channels": 1}
    (folder / "config.json").write_text(json.dumps(config))
    code = "from pathlib import Path\nPath('ran').touch()\nfrom torch import nn\n\n"
    Path("tracer.py").write_text(f"{code}def network(num_classes, in_channels):\n    return nn.Linear(1, 1)\n")
    return folder


def test_a_package_runs_no_code_without_permission(of_code: Path, tmp_path: Path, run: Run) -> None:
    with pytest.raises(InputError, match="external code builds, 'tracer:network'"):
        load_student(of_code)
    refused(run("predict", of_code, of_code), "external code builds")
    assert not Path("ran").exists()
    with pytest.raises(InputError, match="do not fit"):
        load_student(of_code, trusted_code=["tracer:network"])
    assert Path("ran").exists()


def test_the_former_name_of_trusted_code(of_code: Path) -> None:
    with pytest.warns(DeprecationWarning, match="trusted_code"), pytest.raises(InputError, match="do not fit"):
        load_student(of_code, said=["tracer:network"])


def test_code_named_by_a_run_is_run_if_the_command_line_names_it(tmp_path: Path, tiny: Path, run: Run) -> None:
    Path("small_net.py").write_text(
        "from pathlib import Path\nfrom torch import nn\n\nPath('ran').touch()\n\n\n"
        "def network(num_classes, in_channels, wide=8):\n"
        "    body = nn.Sequential(nn.Conv2d(in_channels, wide, 3, 2), nn.ReLU(), nn.Conv2d(wide, 8, 3, 2))\n"
        "    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))\n"
    )
    own = ["transfer.method=student", "student.model=small_net:network", "student.args={wide=6}", "student.epochs=1"]
    assert run("run", tiny, *own, "teacher.epochs=1").code == 0
    data = open_data("synthetic", train=20)
    Image.fromarray(data.train.images[:1][0].permute(1, 2, 0).numpy()).save("one.png")
    commands = [["predict", "runs/tiny", "one.png", "--json"], ["package", "runs/tiny", "--out", "shared"]]
    if find_spec("onnxruntime"):
        commands.append(["export", "runs/tiny", "--format", "onnx", "--out", "out"])
    Path("ran").unlink()
    sys.modules.pop("small_net")
    for command in commands:
        refused(run(*command), "external code builds, 'small_net:network'", "--trust-code small_net:network")
        refused(run(*command, "--trust-code", "other:network"), "external code builds")
    assert not Path("ran").exists()
    for command in commands:
        said = run(*command, "--trust-code", "small_net:network")
        assert said.code == 0, said.err
        first = (said.err if command[0] == "predict" else said.out).splitlines()[0]
        assert first == f"runs external code: small_net:network ({tmp_path}/small_net.py), with wide = 6"
    packaged = load_student("shared", trusted_code=["small_net:network"])
    assert packaged.classes == data.classes
    refused(run("predict", "shared", "one.png"), "external code builds")
    said = run("predict", "shared", "one.png", "--trust-code", "small_net:network")
    assert said.err.startswith("runs external code: small_net:network (")
