"""What the docs show works."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from conftest import Run
from factor_transfer.data import open_data

DOCS = Path(__file__).parents[1] / "docs"


def test_a_method_of_ones_own_joins_the_command_line(tiny: Path) -> None:
    page = (DOCS / "own-method.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(code.strip().splitlines()) < 40
    Path("direction.py").write_text(code)
    commands = re.findall(r"^    python (direction\.py .*)$", page, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        words = command.replace("digits/resnet20-resnet8", str(tiny)).split()
        result = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, timeout=120)
        assert result.returncode == 0, result.stderr
    found = json.loads(Path("runs/tiny/comparison.json").read_text())
    assert list(found["methods"]) == ["student", "factor", "direction", "factor+direction"]
    record = json.loads(Path("runs/tiny/student-direction-seed0/stage.json").read_text())
    assert record["inputs"]["direction"] == {"weight": 3.0}


@pytest.mark.skipif(find_spec("executorch") is None, reason="the extra executorch is not installed")
def test_from_a_run_to_a_running_file(digits_run: Path, run: Run) -> None:
    page = (DOCS / "deploy.md").read_text()
    commands = re.findall(r"^    factor-transfer (.*)$", page, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["run", "export", "predict", "package"]
    shutil.copytree(digits_run, "runs/resnet20-resnet8")
    Path("pictures").mkdir()
    Image.fromarray(open_data("digits").test().images[:1][0, 0].numpy()).save("pictures/0.png")
    # The settings that the run of all these tests was made with: what is up to date is not trained again.
    small = "teacher.model=resnet8 teacher.epochs=4 paraphraser.epochs=1 student.epochs=4"
    tolerant = "--tolerance 5"  # of a student that was hardly trained
    for command in commands:
        added = {"run": small, "export": tolerant}.get(command.split()[0], "")
        result = run(*shlex.split(f"{command} {added}"))
        assert result.code == 0, result.err
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(code.strip().splitlines()) <= 10
    Path("load.py").write_text(code)
    loaded = subprocess.run([sys.executable, "load.py"], capture_output=True, text=True, check=False, timeout=120)
    assert loaded.returncode == 0, loaded.stderr
    lines = loaded.stdout.split()
    assert len(lines) == 6
    assert set(lines[::2]) < set("0123456789")
    (cpp,) = re.findall(r"```cpp\n(.*?)```", page, re.DOTALL)
    assert len(cpp.strip().splitlines()) <= 20
    assert list(json.loads(Path("shared/export.json").read_text())) == ["executorch-int8"]
