"""What the docs show works."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from factor_transfer.methods import TERMS

DOCS = Path(__file__).parents[1] / "docs"


def test_a_method_of_ones_own_joins_the_command_line(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (DOCS / "own-method.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
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


PROMISED = set(re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", (DOCS / "reliability.md").read_text()))


@pytest.mark.parametrize("test", sorted(PROMISED))
def test_what_is_promised_has_a_test(test: tuple[str, str]) -> None:
    file, name = test
    code = (DOCS.parent / "tests" / file).read_text()
    assert not name or f"\ndef {name}(" in code
