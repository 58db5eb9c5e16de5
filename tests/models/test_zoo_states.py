"""Whether a zoo can be used: installed is not enough."""

from types import ModuleType

import pytest

from conftest import Run
from factor_transfer.models import optional as library


def test_show_models_says_whether_a_zoo_can_be_imported(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> ModuleType:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return ModuleType(name)

    monkeypatch.setattr(library, "import_module", import_module)
    monkeypatch.setattr(library, "installed", lambda name: name != "transformers")
    lines = run("show", "models").out.splitlines()
    assert any(
        "timm:NAME (installed, but torchvision, which timm imports, cannot be imported" in line for line in lines
    )
    assert any("torchvision:NAME (installed, but torchvision cannot be imported" in line for line in lines)
    assert "  transformers:NAME (not installed)" in lines
    monkeypatch.setattr(library, "installed", lambda name: name == "timm")
    assert "  timm:NAME (installed)" in run("show", "models").out.splitlines()
