"""Imports run one way, and a folder stays small enough to be seen at a glance."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from conftest import ROOT

PACKAGE = ROOT / "src" / "factor_transfer"

# Each floor may import from those before it. The first line has the modules that lie beside the packages.
FLOORS = [
    *("errors", "settings", "files", "state_dicts", "versions", "external"),
    *("distributed", "data", "models", "taps", "methods", "training", "config"),
    *("pipeline", "report", "commands", "export", "deploy", "cli"),
]
MODULES = {
    ".".join(("factor_transfer", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def imported(module: str) -> Iterator[str]:
    """The package's own modules that one imports, wherever in its code."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from {name if name in MODULES else node.module for name in names} & MODULES.keys()
        elif isinstance(node, ast.Import):
            yield from {alias.name for alias in node.names} & MODULES.keys()


def floor(module: str) -> int:
    """Which floor a module is on; the package itself and ``__main__`` are on the top one."""
    parts = module.split(".")
    return FLOORS.index(parts[1]) if len(parts) > 1 and parts[1] in FLOORS else len(FLOORS)


def test_every_package_has_a_layer() -> None:
    assert {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()} == {
        *FLOORS,
        "__init__",
        "__main__",
    }


@pytest.mark.parametrize("module", MODULES)
def test_no_import_goes_up_the_layers(module: str) -> None:
    assert [name for name in imported(module) if floor(name) > floor(module)] == []


def test_no_imports_are_circular() -> None:
    TopologicalSorter({module: set(imported(module)) - {module} for module in MODULES}).prepare()


@pytest.mark.parametrize("folder", sorted({path.parent for path in MODULES.values()}), ids=lambda path: path.name)
def test_no_folder_has_more_than_ten_modules(folder: Path) -> None:
    assert len([path for path in folder.glob("*.py") if not path.name.startswith("__")]) <= 10
