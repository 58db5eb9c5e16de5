"""Whether a zoo can be used: installed is not enough."""

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from conftest import Run
from factor_transfer import external
from factor_transfer.models import optional as library
from factor_transfer.models.external import zoo_states


def _install(monkeypatch: pytest.MonkeyPatch, find_spec: Callable[[str], ModuleSpec | None]) -> None:
    for module in (external, library):
        monkeypatch.setattr(module, "find_spec", find_spec)


def test_show_models_states_whether_each_zoo_can_be_imported(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A torchvision that was built for another torch: its file of operators cannot be loaded."""
    spec = ModuleSpec("torchvision", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    (tmp_path / "_C.so").write_bytes(b"")
    _install(monkeypatch, lambda name: spec if name != "transformers" else None)
    monkeypatch.setattr(torch.ops, "torchvision", SimpleNamespace(), raising=False)
    before = set(sys.modules)
    lines = run("show", "models").out.splitlines()
    assert any(
        "timm:NAME (installed, but torchvision, which timm imports, cannot be imported" in line for line in lines
    )
    assert any("torchvision:NAME (installed, but torchvision cannot be imported" in line for line in lines)
    assert "  transformers:NAME (not installed)" in lines
    monkeypatch.setattr(torch.ops, "torchvision", SimpleNamespace(nms=None))  # as a torchvision that fits declares it
    assert zoo_states()["timm"] == "installed"
    _install(monkeypatch, lambda name: spec if name == "timm" else None)
    assert zoo_states() == {"timm": "installed", "torchvision": "not installed", "transformers": "not installed"}
    assert {"timm", "torchvision"} & (set(sys.modules) - before) == set()
