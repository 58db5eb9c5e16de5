"""What a command ends with: what was reached, and the command to run next."""

import io
import json
import shutil
from pathlib import Path

from rich.console import Console

from conftest import Run, refused
from factor_transfer.training.log import Display, RunLog

STUDENT = "student-factor-seed0"


def test_every_stage_prints_its_result_and_the_next_command(finished: Path, tiny: Path, run: Run) -> None:
    place = f"--work-dir {finished}"
    reached = json.loads((finished / "teacher" / "stage.json").read_text())["validation"]["top1"]
    for command, figures, following in (
        ("teacher", f"teacher  validation top-1 {reached:.2f}", f"factor-transfer pretrain {tiny} {place}"),
        ("pretrain", "paraphraser  validation relative error", f"factor-transfer train {tiny} {place}"),
        ("train", f"{STUDENT}  validation top-1", f"factor-transfer test {finished / STUDENT} "),
    ):
        lines = run(command, tiny, "--work-dir", finished).out.splitlines()
        assert any(line.startswith(figures) for line in lines), lines
        assert any(line.startswith(f"  {following}") for line in lines[lines.index("Next:") :]), lines
    out = run("teacher", tiny, "transfer.method=student", "--work-dir", finished).out
    assert f"  factor-transfer train {tiny} transfer.method=student {place}" in out


def test_run_names_the_commands_that_use_the_student(work: Path, tiny: Path, run: Run) -> None:
    out = run("run", tiny, "--work-dir", work).out
    following = out[out.index("Next:") :]
    for step in (f"factor-transfer export {work}", f"factor-transfer predict {work} PICTURE", f"{work}/report.html"):
        assert step in following


def test_a_run_is_tested_without_its_recipe(finished: Path, tiny: Path, run: Run) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    for key, places in {
        "student": (finished, finished / STUDENT, finished / STUDENT / "weights.safetensors"),
        "baseline": (finished / "student-alone-seed0",),
        "teacher": (finished / "teacher",),
    }.items():
        for place in places:
            result = run("test", place, "--metrics", "accuracy,f1", "--json", "out.json")
            assert result.code == 0, result.err
            assert json.loads(Path("out.json").read_text())["top1"] == summary[key]["top1"]
    assert "Note: this network was trained on other images" in run("test", finished, "data.limit=50").out
    assert "other images" in run("test", finished, "data.limit=50", "data.noise=0.4").out


def test_a_stage_that_cannot_be_tested_is_refused(finished: Path, tiny: Path, work: Path, run: Run) -> None:
    refused(run("test", finished, finished / STUDENT), "is a run, which contains its recipe and its weights; leave out")
    refused(run("test", tiny), "there is nothing to test: give the folder of a run, or a recipe and CHECKPOINT")
    refused(run("test", "."), "contains no student")
    shutil.copy(work / STUDENT / "weights.safetensors", "alone.safetensors")
    refused(run("test", "alone.safetensors"), "alone.safetensors does not exist; give the folder")
    (work / STUDENT / "recipe.toml").unlink()
    refused(run("test", work), "has no recipe.toml")


def test_code_named_by_a_run_is_not_run_without_permission(work: Path, run: Run) -> None:
    record = json.loads((work / STUDENT / "stage.json").read_text())
    record["model"]["name"] = "nowhere.at_all:network"
    (work / STUDENT / "stage.json").write_text(json.dumps(record))
    refused(run("test", work), "a network that external code builds, .*--trust-code nowhere.at_all:network")


def test_finished_epochs_stay_as_rows_in_a_terminal(tmp_path: Path) -> None:
    screen = io.StringIO()
    display = Display(Console(file=screen, force_terminal=True, width=100))
    log = RunLog(display, "teacher", tmp_path / "metrics.jsonl")
    log.start(2, 1, 0)
    for epoch in range(2):
        log.step(epoch + 1, {"loss": 0.5}, 100.0)
        log.epoch(epoch, {"loss": 0.5, "validation_top1": 60.0 + epoch})
    log.stop()
    rows = [line for line in screen.getvalue().splitlines() if "validation top-1 6" in line and "/2" in line]
    assert len(rows) == 2
