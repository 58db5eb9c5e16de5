"""What the docs show works."""

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image

from conftest import Run
from factor_transfer import Distillation, build_model
from factor_transfer.cli.main import app
from factor_transfer.config.read import read_recipe
from factor_transfer.data import open_data
from factor_transfer.data.decode import ENDINGS
from factor_transfer.data.sets.folder import SPLITS
from factor_transfer.data.sets.image_files import SYSTEM
from factor_transfer.methods import TERMS

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page: str, language: str) -> list[str]:
    """The blocks of a page's code in a language."""
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def test_the_recipes_on_pages_are_valid(tmp_path: Path) -> None:
    (recipe,), (fast,), (robust,) = (blocks(page, "toml") for page in ("tutorial.md", "speed.md", "cluster.md"))
    (transfer,) = blocks("methods.md", "toml")
    (preset,) = blocks("coming-from.md", "toml")
    (tmp_path / "pictures.toml").write_text(recipe)
    assert read_recipe(tmp_path / "pictures.toml").name == "pictures"
    (tmp_path / "sum.toml").write_text(recipe[: recipe.index("[transfer.factor]")] + transfer)
    assert read_recipe(tmp_path / "sum.toml").method == "factor+kd"
    (tmp_path / "preset.toml").write_text(preset + recipe)
    assert read_recipe(tmp_path / "preset.toml").terms["factor"].model_dump()["attention"]
    (tmp_path / "fast.toml").write_text(fast[: fast.index("[cache]")] + recipe + fast[fast.index("[cache]") :])
    assert read_recipe(tmp_path / "fast.toml").cache.views == 8
    top, stages = robust.split("[student] # and the other stages\n")
    settings = re.findall(r"(\w+) = ([\d.]+)", stages)
    assert [name for name, _ in settings] == ["accumulate", "clip_norm"]
    (tmp_path / "robust.toml").write_text(f"{top}\n{recipe}")
    said = read_recipe(tmp_path / "robust.toml", [f"student.{name}={value}" for name, value in settings])
    plain = read_recipe(tmp_path / "pictures.toml", ["student.clip_norm=5.0", "name=robust"])
    assert said.model_dump() == plain.model_dump()  # all others are the defaults


def test_every_term_is_described() -> None:
    page = (DOCS / "methods.md").read_text()
    assert [name for name in TERMS if f"| `{name}` |" not in page] == []
    assert [name for name in TERMS if f"### `{name}`\n" not in page or f"<!-- made: term {name} -->" not in page] == []


def test_the_examples_run() -> None:
    for page, made in (("results.md", "student"), ("library.md", "losses")):
        names: dict[str, object] = {}
        for code in blocks(page, "python"):
            exec(code, names)
        assert names[made] is not None


# Which of the page's blocks need which library: the first two begin all others.
LOOPS = {"torch": 2, "pytorch_lightning": 3, "transformers": 4}


@pytest.mark.parametrize("library", LOOPS)
@pytest.mark.filterwarnings("ignore")  # of other libraries
def test_the_loops_run(library: str, torchvision_operators: None) -> None:
    needed = [library, "accelerate"] if library == "transformers" else [library]
    if missing := [name for name in needed if find_spec(name) is None]:
        pytest.skip(f"{missing[0]} is not installed")
    begin, plain, saved, *others = blocks("loops.md", "python")
    names: dict[str, object] = {}
    exec(begin, names)
    student = names["student"]
    assert isinstance(student, torch.nn.Module)
    exec(plain, names)
    if library == "torch":
        exec(saved, names)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    teacher = {name: value.clone() for name, value in names["teacher"].state_dict().items()}  # type: ignore[attr-defined]
    exec(others[LOOPS[library] - 2], names)
    assert all(torch.equal(value, teacher[name]) for name, value in names["teacher"].state_dict().items())  # type: ignore[attr-defined]
    if library == "torch":
        names["loss"].backward()  # type: ignore[attr-defined]
        assert student.get_parameter("conv1.weight").grad is not None
    else:
        assert not all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_described(command: str, run: Run) -> None:
    page = (DOCS / "command-line.md").read_text()
    assert f"    factor-transfer {command} " in page
    result = run(command, "--help")
    assert result.code == 0
    options = set(re.findall(r"--[a-z-]+", page))
    missing = [option for option in re.findall(r"--[a-z-]+", result.out) if option not in options | {"--help"}]
    assert missing == []


def test_the_page_about_folders_is_complete() -> None:
    page = (DOCS / "data.md").read_text()
    names = {f"`{name}`" for name in [*SPLITS, *ENDINGS]}
    assert {name for name in names if name not in page} == set()
    lowered = page.lower()
    assert {name for name in SYSTEM if f"`{name}`" not in lowered} == set()


def test_a_custom_method_works_on_the_command_line(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (DOCS / "own-method.md").read_text()
    code, of_logits = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(code.strip().splitlines()) < 40
    Path("direction.py").write_text(code)
    commands = re.findall(r"^    python (direction\.py .*)$", page, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        words = command.replace("digits/resnet20-resnet8", str(tiny)).split()
        monkeypatch.setattr(sys, "argv", words)
        monkeypatch.setitem(TERMS, "direction", TERMS["kd"])  # so that it is taken away again
        with pytest.raises(SystemExit, match=r"^0$"):
            runpy.run_path(words[0], run_name="__main__")
    found = json.loads(Path("runs/tiny/comparison.json").read_text())
    assert list(found["methods"]) == ["student", "factor", "direction", "factor+direction"]
    record = json.loads(Path("runs/tiny/student-direction-seed0/stage.json").read_text())
    assert record["inputs"]["direction"] == {"weight": 3.0}
    names = runpy.run_path("direction.py")
    exec(of_logits, names)
    student, teacher = build_model("resnet8", 4, width=2), build_model("resnet8", 4, width=2)
    losses = Distillation(student, teacher, {"logits": names["Logits"]()})(torch.rand(2, 3, 8, 8), torch.tensor([0, 1]))
    assert losses["loss_logits"] > 0


MADE = sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md") if "<!-- made: " in page.read_text())


@pytest.mark.parametrize("page", MADE)
def test_the_parts_of_a_page_that_are_made_from_the_code(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS)
    source = [(DOCS / page).read_text()]
    import_module("made").fill(None, page.removesuffix(".md"), source)
    assert "<!-- made: " not in source[0]
    if page == "recipes.md":
        assert "| `schedule` |" in source[0].partition("## `[transfer]`")[2]
        assert "`factor.beta`" not in source[0]  # a setting of a term, which another page has


PROMISED = set(re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", (DOCS / "reliability.md").read_text()))


@pytest.mark.parametrize("test", sorted(PROMISED))
def test_every_promise_has_a_test(test: tuple[str, str]) -> None:
    file, name = test
    (path,) = (DOCS.parent / "tests").rglob(file.rpartition("/")[2])
    code = path.read_text()
    assert not name or f"\ndef {name}(" in code


@pytest.mark.skipif(find_spec("executorch") is None, reason="the extra executorch is not installed")
def test_from_a_run_to_a_running_file(exported_digits: Path, run: Run) -> None:
    page = (DOCS / "deploy.md").read_text()
    commands = re.findall(r"^    factor-transfer (.*)$", page, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["run", "export", "predict", "package"]
    shutil.copytree(exported_digits, ".", dirs_exist_ok=True)
    Path("pictures").mkdir()
    # A larger picture that lies on its side, to be turned, scaled and cropped.
    digit = Image.fromarray(open_data("digits").test().images[:1][0, 0].numpy()).resize((50, 50))
    picture = Image.new("L", (50, 70), 90)
    picture.paste(digit, (0, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it by 90 degrees
    picture.rotate(90, expand=True).save("pictures/0.png", exif=exif)
    # The settings that the run of all these tests was made with: what is up to date is not trained again.
    small = "teacher.model=resnet8 teacher.epochs=4 paraphraser.epochs=1 student.epochs=4"
    for command in commands:
        if command.startswith("export"):
            assert Path("device/student.pte").is_file()  # which this command has made
            continue
        result = run(*shlex.split(f"{command} {small if command.startswith('run') else ''}"))
        assert result.code == 0, result.err
        if command.startswith("predict"):
            predicted = re.findall(r"(\d) ([\d.]+)%", result.out)
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(code.strip().splitlines()) <= 21
    Path("load.py").write_text(code)
    (called,) = re.findall(r"^    python (load\.py .*)$", page, re.MULTILINE)
    command = [sys.executable, *called.split()]
    loaded = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert loaded.returncode == 0, loaded.stderr
    found = loaded.stdout.split()
    # The same classes, with the same probabilities, as predict finds in the same file.
    assert found[::2] == [name for name, _ in predicted]
    assert [float(share) for share in found[1::2]] == pytest.approx(
        [float(percent) / 100 for _, percent in predicted], abs=0.002
    )
    (cpp,) = re.findall(r"```cpp\n(.*?)```", page, re.DOTALL)
    assert len(cpp.strip().splitlines()) <= 20
    assert list(json.loads(Path("shared/export.json").read_text())) == ["executorch-int8"]
