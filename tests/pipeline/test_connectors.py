"""The weights of the modules that terms train beside the student."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Run
from factor_transfer import Translator
from factor_transfer.errors import InputError
from factor_transfer.methods import Distillation
from factor_transfer.pipeline import artefact
from factor_transfer.training.trainer import Trainer

FEW = ["teacher.epochs=1", "paraphraser.epochs=1", "student.epochs=2"]


def test_the_translator_of_the_delivered_epoch_is_beside_the_student(
    tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    end = Trainer.end_epoch

    def noted(self: Trainer, *arguments: Any) -> None:
        end(self, *arguments)
        if isinstance(self.method, Distillation):
            term: Any = self.method.terms["factor"]
            seen.append({key: value.clone() for key, value in term.translators[0].state_dict().items()})

    monkeypatch.setattr(Trainer, "end_epoch", noted)
    assert run("run", tiny, *FEW, "--work-dir", "work").code == 0
    done = artefact.find(Path("work/student-factor-seed0"))
    assert done is not None
    stored = done.connectors()
    prefix = "factor.translators.0."
    assert all(key.startswith(prefix) for key in stored)  # and nothing of the frozen paraphraser
    expected = seen[done.record["epoch"] - 1]
    assert {key.removeprefix(prefix) for key in stored} == set(expected)
    assert all(torch.equal(stored[prefix + key], value) for key, value in expected.items())
    Translator(16, 16).load_state_dict({key.removeprefix(prefix): value for key, value in stored.items()})


def test_damaged_ones_are_refused_and_missing_ones_are_none(finished: Path, tmp_path: Path) -> None:
    work = Path(shutil.copytree(finished, tmp_path / "work"))
    for name in ("student-alone-seed0", "teacher"):
        done = artefact.find(work / name)
        assert done is not None
        assert done.connectors() == {}
    student = artefact.find(work / "student-factor-seed0")
    assert student is not None
    path = student.folder / "connectors.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=r"connectors\.safetensors"):
        student.connectors()
    path.unlink()
    assert student.connectors() == {}
