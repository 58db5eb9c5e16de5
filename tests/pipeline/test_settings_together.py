"""Settings of speed together: whatever is combined, a compiled training is the one that is not compiled."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from conftest import Run

STAGES = ["teacher", "paraphraser", "student-factor+kd-seed0"]
SETTINGS = ["teacher.epochs=1", "paraphraser.epochs=1", "student.epochs=2", "cache.views=2", "precision=bf16-mixed"]
SETTINGS += ["teacher.accumulate=2", "student.accumulate=2", "transfer.method=factor+kd"]


def losses(work: str) -> dict[str, list[float]]:
    lines = {stage: Path(work, stage, "metrics.jsonl").read_text().splitlines() for stage in STAGES}
    return {stage: [json.loads(line)["loss"] for line in lines[stage]] for stage in STAGES}


def test_compiled_and_not(tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_module = nn.Module.compile

    # The graphs are captured as they always are; that they are then run by PyTorch itself saves minutes.
    @functools.wraps(compile_module)
    def captured(module: nn.Module, *, dynamic: bool, options: dict[str, Any]) -> None:
        compile_module(module, dynamic=dynamic, backend="aot_eager")

    monkeypatch.setattr(nn.Module, "compile", captured)
    for compiled in ("off", "on"):
        result = run("run", tiny, *SETTINGS, f"compile={compiled}", "--work-dir", compiled)
        assert result.code == 0, result.err
        assert "is not compiled" not in result.out
    plain, found = losses("off"), losses("on")
    for stage in STAGES:
        assert found[stage] == pytest.approx(plain[stage], rel=0.05), stage
