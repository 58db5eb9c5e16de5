"""That the benchmarks run, and that what is written of them is what they said. How fast anything is, is not asked."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from factor_transfer.config.read import read_recipe

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
README = (BENCHMARKS / "README.md").read_text()
VARIANTS = {"textbook_student", "textbook_transfer", "transfer", "transfer_cached", "student"}


def test_step_measures_every_variant(tmp_path: Path) -> None:
    quick = ["--pair", "resnet8-resnet8", "--batch", "4", "--rounds", "1", "--threads", "1", "--compile", "off"]
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
        assert set(found[key]) == VARIANTS
    for name, ratio in found["ratios"].items():
        one, other = name.split(" / ")
        assert ratio == pytest.approx(found["images_per_s"][one] / found["images_per_s"][other])
        assert name in done.stdout


def test_the_recipe_is_valid() -> None:
    assert read_recipe(BENCHMARKS / "views-cifar10.toml").terms.keys() == {"factor"}


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
