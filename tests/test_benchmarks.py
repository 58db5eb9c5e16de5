"""That the benchmarks run, and that what is written of them is what they said. How fast anything is, is not asked."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from factor_transfer.config.read import read_recipe

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
compare = importlib.import_module("compare")
README = (BENCHMARKS / "README.md").read_text()
HALF = {"transfer_bf16", "transfer_cached_bf16", "student_bf16"}
VARIANTS = {"textbook_student", "textbook_transfer", "transfer", "transfer_cached", "student"}


def test_step_measures_every_variant(tmp_path: Path) -> None:
    quick = ["--pair", "resnet8-resnet8", "--batch", "4", "--rounds", "1", "--threads", "1", "--compile", "off"]
    quick += ["--precision", "32-true", "bf16-mixed"]
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "step.py", *quick, "--json", tmp_path / "step.json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "step.json").read_text())
    assert {"pair", "device", "threads", "batch", "peak_gflops"} <= set(found)
    for key in ("images_per_s", "fraction_of_peak", "peak_memory_mb"):
        assert set(found[key]) == VARIANTS | HALF
    for name, ratio in found["ratios"].items():
        one, other = name.split(" / ")
        assert ratio == pytest.approx(found["images_per_s"][one] / found["images_per_s"][other])
        assert name in done.stdout


def test_compare_times_comparisons_of_valid_recipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each row's recipe and settings are read; the comparisons are not run."""
    durations, commands = iter([8.0, 4.0, 2.0, 4.0, 1.0]), []

    def seconds(source: Path, words: list[str]) -> float:
        commands.append(words)
        read_recipe(words[0], [word for word in words[1:] if "=" in word])
        return next(durations)

    monkeypatch.setattr(compare, "seconds", seconds)
    monkeypatch.setattr(sys, "argv", ["compare.py", "--before", ".", "--json", str(tmp_path / "found.json")])
    compare.main()
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found["ratios"].values()) == [1.0, 2.0, 4.0, 2.0, 8.0]
    assert ["--jobs" in words for words in commands] == [False, True, True, False, False]
    assert "side by side, bfloat16       1.0 s  8.00 times as fast as before" in capsys.readouterr().out


def test_the_recipe_is_valid() -> None:
    for recipe in ("views-cifar10.toml", "precision-cifar10.toml"):
        assert read_recipe(BENCHMARKS / recipe).terms.keys() == {"factor"}


@pytest.mark.parametrize("record", sorted((BENCHMARKS / "results").glob("step-*.json")), ids=lambda path: path.stem)
def test_speeds_in_the_readme_are_those_of_the_record(record: Path) -> None:
    found = json.loads(record.read_text())
    section = README[README.index(f"`results/{record.name}`") + 1 :].partition("\n\n`results/")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE))
    for name, speed in found["images_per_s"].items():
        row = [cell.strip() for cell in rows[name].split("|")]
        assert row[0] == f"{speed:,.0f}"
        assert row[2] == f"{found['fraction_of_peak'][name]:.2f}"
        assert row[3] == f"{found['peak_memory_mb'][name]:,.0f} MB"
    column = ["step-1-thread", "step-2-thread"].index(record.stem)
    for name, ratio in found["ratios"].items():
        (row,) = re.findall(rf"^\| `{name}` \| (.*) \|$", README, re.MULTILINE)
        assert row.split("|")[column].strip() == f"{ratio:.2f}"


@pytest.mark.parametrize("name", ["precision-step", "peer-torchdistill"])
def test_ratios_in_the_readme_are_those_of_the_record(name: str) -> None:
    speeds = json.loads((BENCHMARKS / "results" / f"{name}.json").read_text())["images_per_s"]
    section = README[README.index(f"`results/{name}.json`") :].partition("\n\n| ")[2].partition("\n\n")[0]
    columns = [column.strip(" `/") for column in section.splitlines()[0].strip("|").split("|")[2:]]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE))
    assert rows.keys() == speeds.keys()
    for variant, row in rows.items():
        speed, *ratios = [cell.strip() for cell in row.split("|")]
        assert speed == f"{speeds[variant]:.0f}"
        for column, ratio in zip(columns, ratios, strict=True):
            assert ratio in ("", f"{speeds[variant] / speeds[column]:.2f}")
        assert any(ratios)
