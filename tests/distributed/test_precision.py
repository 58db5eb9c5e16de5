import json
from pathlib import Path

import pytest
import torch

from conftest import Run
from factor_transfer.distributed.precision import FULL, HALF, fast_precision
from factor_transfer.pipeline import experiment

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu sse2 avx2 avx512f avx512_bf16", HALF),
        ("fpu amx_tile amx_bf16 amx_int8", HALF),
        ("fpu sse2 avx2", FULL),
        ("avx512f avx512_vnni avx512_bf16x", FULL),
    ],
)
def test_the_processor_is_asked(flags: str, expected: str, tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor : 0\nmodel name : some\nflags : {flags}\n")
    assert fast_precision(CPU, info) == expected


def test_an_unknown_processor_uses_float32(tmp_path: Path) -> None:
    assert fast_precision(CPU, tmp_path / "none") == FULL
    assert fast_precision(torch.device("mps")) == FULL


def precisions(work: str) -> set[str]:
    return {json.loads(path.read_text())["inputs"]["precision"] for path in Path(work).glob("*/stage.json")}


def test_auto_is_settled_once_for_a_work_dir(tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "fast_precision", lambda device: HALF)
    first = run("teacher", tiny, "precision=auto", "--work-dir", "auto")
    assert first.code == 0, first.err
    assert "on cpu, in bf16-mixed\n" in first.out
    # On a machine that is faster in float32 the other stages are trained as the first one was.
    monkeypatch.setattr(experiment, "fast_precision", lambda device: FULL)
    second = run("run", tiny, "precision=auto", "--work-dir", "auto")
    assert second.code == 0, second.err
    assert "teacher  up to date" in second.out
    assert precisions("auto") == {HALF}
    assert run("run", tiny, "precision=auto", "--work-dir", "new").code == 0
    assert precisions("new") == {FULL}
    # And auto gives what is got by saying the same.
    explicit = run("run", tiny, "precision=bf16-mixed", "--work-dir", "auto")
    assert "runs again" not in explicit.out
    assert "in bf16-mixed" not in explicit.out
