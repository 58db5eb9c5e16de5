"""Terms that are defined outside the package: errors in their code, and what the rest of the package knows of them."""

import importlib.util
import json
import runpy
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import Run, refused
from factor_transfer import KD, Distillation, Pair, SimKD, Term, build_model
from factor_transfer.data import Batch
from factor_transfer.errors import InputError
from factor_transfer.files import sha256
from factor_transfer.methods import TERMS
from factor_transfer.methods.own import locate, source
from factor_transfer.pipeline.experiment import program_call
from factor_transfer.taps import Seen

IMAGES, LABELS = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])


class Own(Term):
    """The mean of the student's logits, or whatever a mistake returns."""

    teacher_logits = True

    def __init__(self, *, weight: float = 1.0, mistake: str = "") -> None:
        super().__init__()
        self.weight, self.mistake = weight, mistake

    @classmethod
    def between(cls, pair: Pair, **settings: Any) -> "Own":
        if settings.get("mistake") == "between":
            raise KeyError("no such key")
        return cls(**settings)

    def target(self, teacher: Seen) -> Tensor:
        assert teacher.logits is not None
        return teacher.logits if self.mistake != "target" else teacher.logitz  # type: ignore[attr-defined]

    def forward(self, student: Seen, target: Tensor, batch: Batch) -> Tensor:
        assert student.logits is not None
        outputs: dict[str, Any] = {
            "rows": student.logits.mean(1),
            "float": 0.5,
            "none": None,
            "infinite": student.logits.mean() * float("nan"),
            "detached": student.logits.mean().detach(),
        }
        if self.mistake == "forward":
            return student.logits @ target[:3]
        result: Tensor = outputs.get(self.mistake, student.logits.square().mean())
        return result


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("rows", r"the term 'own' returned a shape \(4,\); its loss must be a 0-d tensor"),
        ("float", "the term 'own' returned a float;"),
        ("none", "the term 'own' returned a NoneType;"),
        (
            "forward",
            r"forward of the term 'own' failed: RuntimeError: mat1 and mat2 .* \(.*test_own_terms\.py, line \d+\)",
        ),
        ("target", r"target of the term 'own' failed: AttributeError: .*logitz"),
    ],
)
def test_a_mistake_names_the_term_and_its_line(mistake: str, message: str) -> None:
    method = Distillation(
        build_model("resnet8", 4, width=2), build_model("resnet8", 4, width=2), {"own": Own(mistake=mistake)}
    )
    with pytest.raises(InputError, match=message):
        method(IMAGES, LABELS)


@pytest.mark.parametrize("mistake", ["between", "forward", "rows"])
def test_a_command_reports_a_mistake_before_anything_is_trained(
    tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    monkeypatch.setitem(TERMS, "own", Own)
    refused(run("run", tiny, "transfer.method=own", f"transfer.own.mistake={mistake}"), "the term 'own'")
    assert not list(Path("runs").glob("*/teacher/weights.safetensors"))


@pytest.mark.parametrize(
    ("mistake", "warning"),
    [("infinite", "own: its loss or its gradient is not finite"), ("detached", "own has no gradient")],
)
def test_check_warns_of_a_term_without_effect(
    tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch, mistake: str, warning: str
) -> None:
    monkeypatch.setitem(TERMS, "own", Own)
    result = run("check", tiny, "transfer.method=own", f"transfer.own.mistake={mistake}")
    assert result.code == 0, result.err
    assert warning in " ".join((result.out + result.err).split())


SCRIPT = """
from factor_transfer.cli import main
from factor_transfer.methods import KD, TERMS

class Mine(KD):
    title = "Mine"

TERMS["mine"] = Mine
{call}main()
"""


WORDS = ["compare", "--seeds", "1", "--jobs", "2", "--methods"]


def as_script(text: str, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """Run a script, such as a user's, as the program of this process."""
    Path("mine.py").write_text(text)
    monkeypatch.setattr(sys, "argv", ["mine.py", *words])
    monkeypatch.setitem(TERMS, "mine", TERMS["kd"])  # so that it is removed again
    with pytest.raises(SystemExit) as ended:
        runpy.run_path("mine.py", run_name="__main__")
    assert ended.value.code == (0 if "__name__" in text else 2)


def test_other_processes_import_it_from_its_script(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = SCRIPT.format(call='if __name__ == "__main__":\n    ')
    as_script(script, monkeypatch, *WORDS, "student,kd,mine", str(tiny))
    runs = json.loads(Path("runs/tiny/comparison.json").read_text())["runs"]
    assert [run["method"] for run in runs] == ["student", "kd", "mine"]
    assert runs[1]["top1"] == runs[2]["top1"]
    stages = [json.loads(Path(f"runs/tiny/student-{name}-seed0/stage.json").read_text()) for name in ("kd", "mine")]
    assert stages[1]["inputs"]["code"] == {"mine": sha256(Path("mine.py"))}
    assert "code" not in stages[0]["inputs"]


def test_a_script_without_a_guard_is_one_message(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    as_script(SCRIPT.format(call=""), monkeypatch, *WORDS, "student,mine", str(tiny))
    assert 'put `main()` under `if __name__ == "__main__":`' in capsys.readouterr().err


def test_other_processes_cannot_import_a_class_of_a_function(
    tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Inner(KD):
        pass

    monkeypatch.setitem(TERMS, "inner", Inner)
    refused(run(*WORDS, "student,inner", tiny), "cannot import the term 'inner', which is defined in a function")


def test_a_term_of_a_notebook_has_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    term = type("Typed", (KD,), {"__module__": "__main__"})
    assert source(term) is None
    assert locate(term) is None


def test_the_command_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    assert program_call()[1:] == ["-P", "-m", "factor_transfer"]
    monkeypatch.setitem(TERMS, "own", Own)
    monkeypatch.setattr(sys, "argv", ["mine.py", "compare"])
    assert program_call() == [sys.executable, str(Path("mine.py").resolve())]
    monkeypatch.setattr(sys, "argv", ["pytest"])
    with pytest.raises(InputError, match="the term 'own' is defined outside this package, and no script"):
        program_call()


@pytest.mark.parametrize("name", ["student", "schedule", "ce", "my.bad", "Bad Name", ""])
def test_names_that_a_recipe_cannot_have(name: str, tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TERMS, name, Own)
    refused(run("check", tiny), f"a term of your own cannot be named {name!r}")


def test_a_setting_without_a_type_is_named(tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Untyped(Own):
        def __init__(self, *, sharpness=1.0) -> None:  # type: ignore[no-untyped-def]
            super().__init__()

    monkeypatch.setitem(TERMS, "own", Untyped)
    refused(run("check", tiny), "the setting 'sharpness' of Untyped has no type")


def test_a_student_is_trained_again_when_the_code_changes(
    finished: Path, tiny: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, file = tmp_path / "work", tmp_path / "own_term.py"
    shutil.copytree(finished, work)
    words = ["run", tiny, "transfer.method=own", "--work-dir", work]

    def defined(code: str) -> None:
        file.write_text(code)
        spec = importlib.util.spec_from_file_location("own_term", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "own_term", module)
        spec.loader.exec_module(module)
        monkeypatch.setitem(TERMS, "own", module.Mine)

    code = (
        "from factor_transfer import Term\n\nclass Mine(Term):\n"
        "    def target(self, teacher):\n        return ()\n"
        "    def forward(self, student, target, batch):\n        return student.logits.square().mean()\n"
    )
    monkeypatch.setattr(sys, "argv", ["mine.py"])
    defined(code)
    first = run(*words)
    assert first.code == 0, first.err
    assert f"python mine.py export {work}" in first.out
    defined(code)
    assert "student-own-seed0  up to date" in run(*words).out
    defined(code.replace("square", "abs"))
    again = run(*words)
    assert again.code == 0, again.err
    assert "student-own-seed0  up to date" not in again.out


def test_a_finished_run_says_that_it_needs_the_script(tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(
        run("check", tiny, "transfer.similarity.weight=3"),
        "unknown key 'transfer.similarity'; valid names are .* run that in place of factor-transfer",
    )


def test_a_text_is_one_tap() -> None:
    class OfLayer3(Own):
        teacher_taps = student_taps = "layer3"

    student, teacher = build_model("resnet8", 4, width=2), build_model("resnet8", 4, width=2)
    assert Distillation(student, teacher, {"own": OfLayer3()}).student.taps.keys() == {"layer3"}


def test_simkd_needs_the_network_that_it_adapts() -> None:
    student, teacher = build_model("resnet8", 4, width=2), build_model("resnet8", 4, width=2)
    with pytest.raises(InputError, match=r"SimKD\.adapt"):
        Distillation(student, teacher, {"simkd": SimKD("layer3")})
