"""What the README says works."""

import re
from pathlib import Path

import pytest

from conftest import ROOT, Run
from factor_transfer.config.read import read_recipe
from factor_transfer.methods import TERMS

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_recipes_are_some(tmp_path: Path) -> None:
    recipe, fast, robust, transfer = blocks("toml")
    (tmp_path / "pictures.toml").write_text(recipe)
    assert read_recipe(tmp_path / "pictures.toml").name == "pictures"
    (tmp_path / "sum.toml").write_text(recipe[: recipe.index("[transfer.factor]")] + transfer)
    assert read_recipe(tmp_path / "sum.toml").method == "factor+kd"
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
    table = README[README.index("## Methods") : README.index("### Compared")]
    assert [name for name in TERMS if f"| `{name}` |" not in table] == []


def test_the_examples_run() -> None:
    zoo, library = blocks("python")
    names: dict[str, object] = {}
    exec(zoo, names)
    assert names["student"]
    exec(library, names)
    assert names["losses"]


def test_the_tree_names_every_module() -> None:
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    tree = contributing[contributing.index("## The tree") : contributing.index("## Adding things")]
    package = ROOT / "src" / "factor_transfer"
    modules = {path.stem for path in package.rglob("*.py") if not path.name.startswith("__")}
    assert [name for name in sorted(modules) if not re.search(rf"\b{name}\b", tree)] == []
    packages = {path.parent.name for path in package.rglob("__init__.py")}
    assert [name for name in sorted(packages - {"factor_transfer"}) if f"{name}/" not in tree] == []


@pytest.mark.parametrize(
    "command",
    [
        "compress",
        "init",
        "demo",
        "check",
        "run",
        "compare",
        "teacher",
        "pretrain",
        "train",
        "test",
        "report",
        "show",
        "export",
        "predict",
        "package",
    ],
)
def test_every_command_is_described(command: str, run: Run) -> None:
    assert f"    factor-transfer {command} " in README
    result = run(command, "--help")
    assert result.code == 0
    options = set(re.findall(r"--[a-z-]+", README[README.index("## The command line") : README.index("## Methods")]))
    missing = [option for option in re.findall(r"--[a-z-]+", result.out) if option not in options | {"--help"}]
    assert missing == []
