import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from conftest import CIFAR10, Run, needs_cifar10, refused
from factor_transfer.data import open_data
from factor_transfer.files import sha256
from factor_transfer.state_dicts import read_weights, save_weights

STUDENT = "student-factor-seed0"


def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "work"))


def test_run_leaves_artefacts_and_a_summary(finished: Path) -> None:
    for stage in ("teacher", "paraphraser", STUDENT, "student-alone-seed0"):
        record = json.loads((finished / stage / "stage.json").read_text())
        last = {"last.safetensors"} if record["epoch"] != 3 else set()
        recipe = {"recipe.toml"} if stage.startswith("student") else set()
        beside = {"connectors.safetensors"} if stage == STUDENT else set()
        files = {"weights.safetensors", "stage.json", "metrics.jsonl"} | last | recipe | beside
        assert {path.name for path in (finished / stage).iterdir()} == files
        assert record["finished"]
        assert {"torch", "factor-transfer"} <= set(record["versions"])
        assert len((finished / stage / "metrics.jsonl").read_text().splitlines()) == 3
    summary = json.loads((finished / "summary.json").read_text())
    assert summary.pop("method") == "factor"
    assert set(summary) == {"teacher", "student", "baseline"}
    for figures in summary.values():
        assert {"top1", "top5", "parameters", "macs"} <= set(figures)
        assert 0 <= figures["top1"] <= 100
    assert summary["teacher"]["parameters"] > summary["student"]["parameters"] == summary["baseline"]["parameters"]
    assert summary["teacher"]["macs"] > summary["student"]["macs"]


def test_the_last_epochs_figures_and_those_of_the_delivered_one_are_named(work: Path, tiny: Path, run: Run) -> None:
    folder = work / STUDENT
    state = read_weights(folder / "weights.safetensors")
    save_weights(folder / "last.safetensors", {**state, "fc.weight": -state["fc.weight"]})  # another last epoch
    record = json.loads((folder / "stage.json").read_text())
    (folder / "stage.json").write_text(json.dumps(record | {"last_sha256": sha256(folder / "last.safetensors")}))
    result = run("run", tiny, "--work-dir", work)
    figures = json.loads((work / "summary.json").read_text())["student"]
    for key, name in (("top1_kept", "weights.safetensors"), ("top1_last", "last.safetensors")):
        assert run("test", folder / name, "--json", "found.json").code == 0
        assert figures[key] == json.loads(Path("found.json").read_text())["top1"]
    assert figures["top1"] == figures["top1_kept"] != figures["top1_last"]
    assert "last.safetensors beside them, where there is one, has those of the last epoch (top1_last)" in result.out


def test_the_students_weights_hold_the_student_alone(finished: Path) -> None:
    with_teacher, alone = (
        read_weights(finished / stage / "weights.safetensors") for stage in (STUDENT, "student-alone-seed0")
    )
    assert set(with_teacher) == set(alone)
    assert not all(torch.equal(with_teacher[key], alone[key]) for key in alone)


def test_up_to_date_stages_are_reused(finished: Path, tmp_path: Path, tiny: Path, run: Run) -> None:
    work = copied(finished, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*.safetensors")}
    result = run("run", tiny, "--work-dir", work)
    assert result.code == 0
    assert result.out.count("up to date") == 3
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*.safetensors")} == before
    assert json.loads((work / "summary.json").read_text())["baseline"] is None


def test_outdated_stages_are_retrained_and_moved_to_replaced(
    finished: Path, tmp_path: Path, tiny: Path, run: Run
) -> None:
    work = copied(finished, tmp_path)
    former = (work / STUDENT / "weights.safetensors").read_bytes()
    result = run("run", tiny, "student.epochs=1", "--work-dir", work)
    assert result.code == 0
    assert result.out.count("up to date") == 2
    assert "student.epochs: 3 then, 1 now" in result.out
    assert (work / "replaced" / f"{STUDENT}-1" / "weights.safetensors").read_bytes() == former
    assert (work / STUDENT / "weights.safetensors").read_bytes() != former


def test_other_images_or_another_paraphraser_make_a_stage_out_of_date(
    finished: Path, tmp_path: Path, tiny: Path, run: Run
) -> None:
    work = copied(finished, tmp_path)
    figures = json.loads((work / "teacher" / "stage.json").read_text())
    same = [f"data.mean={figures['mean']}", f"data.std={figures['std']}"]
    assert "up to date" in run("teacher", tiny, *same, "--work-dir", work).out
    # The same statistics of other images: their fingerprint tells.
    assert "data: " in run("teacher", tiny, *same, "data.noise=0.4", "--work-dir", work).out
    shutil.rmtree(work)
    copied(finished, tmp_path)
    assert run("pretrain", tiny, "paraphraser.epochs=1", "--work-dir", work).code == 0
    result = run("train", tiny, "paraphraser.epochs=1", "--work-dir", work)
    assert "runs again because its inputs changed (paraphraser: " in result.out


def test_fresh_retrains_the_named_stage(finished: Path, tmp_path: Path, tiny: Path, run: Run) -> None:
    work = copied(finished, tmp_path)
    weights = work / "paraphraser" / "weights.safetensors"
    former = weights.read_bytes()
    for number in (1, 2):
        assert run("pretrain", tiny, "--fresh", "--work-dir", work).code == 0
        assert (work / "replaced" / f"paraphraser-{number}").is_dir()
    # The same inputs and seed: the same bytes, so that the student is still up to date.
    assert weights.read_bytes() == former
    assert "up to date" in run("train", tiny, "--work-dir", work).out


def test_the_three_stages_one_by_one_give_what_run_gives(finished: Path, tiny: Path, run: Run) -> None:
    for command in ("teacher", "pretrain", "train"):
        result = run(command, tiny)
        assert result.code == 0, result.err
    for stage in ("teacher", "paraphraser", STUDENT):
        ours, other = Path("runs/tiny") / stage, finished / stage
        assert (ours / "weights.safetensors").read_bytes() == (other / "weights.safetensors").read_bytes()


def test_features_as_they_are_need_no_second_stage(finished: Path, tmp_path: Path, tiny: Path, run: Run) -> None:
    work = tmp_path / "work"
    work.mkdir()
    shutil.copytree(finished / "teacher", work / "teacher")
    shutil.copy(finished / "recipe.json", work)
    tiny.write_text(re.sub(r"\[paraphraser\]\n(.+\n)+", "", tiny.read_text()))
    refused(run("run", tiny, "--work-dir", work), "transfer.factor: the term factor needs a paraphraser")
    result = run("run", tiny, "transfer.factor.paraphrase=false", "--work-dir", work)
    assert result.code == 0, result.err
    assert "only used in training: the translator" in result.out
    assert not (work / "paraphraser").exists()
    assert "paraphraser" not in json.loads((work / STUDENT / "stage.json").read_text())["inputs"]


def test_other_seeds_share_teacher_and_paraphraser(finished: Path, tmp_path: Path, tiny: Path, run: Run) -> None:
    work = copied(finished, tmp_path)
    result = run("run", tiny, "student.seed=1", "--work-dir", work)
    assert result.out.count("up to date") == 2
    assert (work / STUDENT / "weights.safetensors").exists()
    assert (work / "student-factor-seed1" / "weights.safetensors").exists()


def test_a_stage_killed_after_epoch_2_resumes_to_the_same_bytes(
    finished: Path, tmp_path: Path, tiny: Path, run: Run
) -> None:
    """A real kill: the process gets SIGKILL, nothing is flushed or caught."""
    work = copied(finished, tmp_path)
    shutil.rmtree(work / STUDENT)
    # Enough epochs that the kill comes in between; a work dir of its own runs through undisturbed.
    other = Path(shutil.copytree(work, tmp_path / "through"))
    arguments = ["train", str(tiny), "student.epochs=24", "--work-dir"]
    process = subprocess.Popen([sys.executable, "-m", "factor_transfer", *arguments, work], stdout=subprocess.DEVNULL)
    metrics = work / STUDENT / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (work / STUDENT / "last.ckpt").exists()
    resumed, through = run(*arguments, work), run(*arguments, other)
    assert (resumed.code, through.code) == (0, 0)
    assert "resumes from" in resumed.out
    assert resumed.out.count("epoch") < through.out.count("epoch")
    files = [folder / STUDENT / "weights.safetensors" for folder in (work, other)]
    assert files[0].read_bytes() == files[1].read_bytes()
    lines = [(folder / STUDENT / "metrics.jsonl").read_text().splitlines() for folder in (work, other)]
    assert [json.loads(line)["loss"] for line in lines[0]] == [json.loads(line)["loss"] for line in lines[1]]


def test_test_agrees_with_the_summary(finished: Path, tmp_path: Path, tiny: Path, run: Run) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    names = "accuracy,precision,recall,f1,calibration"
    for key, stage in (("teacher", "teacher"), ("student", STUDENT), ("baseline", "student-alone-seed0")):
        for checkpoint in (finished / stage, finished / stage / "weights.safetensors"):
            result = run("test", tiny, checkpoint, "--metrics", names, "--json", tmp_path / "out.json")
            assert result.code == 0, result.err
            figures = json.loads((tmp_path / "out.json").read_text())
            assert figures["top1"] == summary[key]["top1"]
            assert figures["top5"] == summary[key]["top5"]
            assert figures["count"] == 32
            assert set(figures["classes"]) == {f"pattern {index}" for index in range(4)}
            assert f"{figures['f1']:.2f}" in result.out
            for name in ("top1", "top5"):  # as many images of each class
                mean = sum(each[name] for each in figures["classes"].values()) / 4
                assert mean == pytest.approx(figures[name], abs=1e-3)


def test_a_work_dir_stands_for_its_finished_student(work: Path, tiny: Path, run: Run) -> None:
    summary = json.loads((work / "summary.json").read_text())
    whole = f"top-1 {summary['student']['top1']:.2f} %"
    result = run("test", tiny, work, "--eval", "accuracy,f1")  # of two, the recipe's method
    assert result.code == 0, result.err
    assert whole in result.out
    assert run("test", tiny, work, "transfer.method=student").out != result.out
    refused(
        run("test", tiny, work, "transfer.method=kd"),
        r"finished students \(student-alone-seed0, student-factor-seed0\), but not student-kd-seed0",
    )
    shutil.rmtree(work / "student-alone-seed0")
    assert whole in run("test", tiny, work, "transfer.method=kd").out  # the only one
    shutil.rmtree(work / STUDENT)
    refused(run("test", tiny, work), "has no finished student")


def test_a_network_is_tested_with_its_own_normalisation(finished: Path, tiny: Path, run: Run) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    result = run("test", tiny, finished / STUDENT, "data.mean=[0.9,0.9,0.9]", "data.std=[0.01,0.01,0.01]")
    assert f"top-1 {summary['student']['top1']:.2f} %" in result.out
    assert "Note: this network was trained on other images" not in result.out
    assert (
        "Note: this network was trained on other images" in run("test", tiny, finished / STUDENT, "data.limit=50").out
    )


def test_weights_without_their_record_are_tested_by_their_layers(
    finished: Path, tmp_path: Path, tiny: Path, run: Run
) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    for key, stage in (("teacher", "teacher"), ("student", STUDENT)):
        shutil.copy(finished / stage / "weights.safetensors", tmp_path / "bare.safetensors")
        run("test", tiny, tmp_path / "bare.safetensors", "--json", tmp_path / "out.json")
        assert json.loads((tmp_path / "out.json").read_text())["top1"] == summary[key]["top1"]


def test_a_teacher_can_be_given(finished: Path, tmp_path: Path, tiny: Path, run: Run) -> None:
    text = tiny.read_text().replace("epochs = 3", f'weights = "{finished}/teacher/weights.safetensors"', 1)
    tiny.write_text(text)
    result = run("run", tiny)
    assert result.code == 0, result.err
    assert "loaded from" in result.out
    ours, theirs = Path("runs/tiny/summary.json"), finished / "summary.json"
    figures = [json.loads(path.read_text())["teacher"]["top1"] for path in (ours, theirs)]
    assert figures[0] == figures[1]
    assert run("run", tiny).out.count("up to date") == 3


def test_a_given_teacher_keeps_the_statistics_it_was_trained_on(
    finished: Path, tmp_path: Path, tiny: Path, run: Run
) -> None:
    tiny.write_text(tiny.read_text().replace("epochs = 3", f'weights = "{finished}/teacher/weights.safetensors"', 1))
    result = run("run", tiny, "data.mean=[0.1,0.1,0.1]", "data.std=[0.1,0.9,0.5]")
    assert result.code == 0, result.err
    ours, theirs = Path("runs/tiny/summary.json"), finished / "summary.json"
    figures = [json.loads(path.read_text())["teacher"]["top1"] for path in (ours, theirs)]
    assert figures[0] == figures[1]


def test_a_folder_of_images_runs_end_to_end(tmp_path: Path, tiny: Path, run: Run) -> None:
    data = open_data("synthetic", train=60, size=12, validation=0.0)
    for index, (image, label) in enumerate(zip(data.train.images[:], data.train.labels, strict=True)):
        folder = tmp_path / "pictures" / f"class {label}"
        folder.mkdir(parents=True, exist_ok=True)
        ending = "png" if index % 2 else "jpg"
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index}.{ending}")
    (tmp_path / "w [b]").mkdir()  # no markup
    result = run(
        *(
            "run",
            tiny,
            f"data={{name='folder', root='{tmp_path}/pictures', size=10}}",
            "--work-dir",
            tmp_path / "w [b]",
        ),
        *("teacher.batch_size=8", "paraphraser.batch_size=8", "student.batch_size=8"),
    )
    assert result.code == 0, result.err
    assert "12 test images" in result.out
    assert f"{tmp_path}/w [b]/teacher" in result.out
    assert (
        run(
            "test", tiny, tmp_path / "w [b]" / STUDENT, f"data={{name='folder', root='{tmp_path}/pictures', size=10}}"
        ).code
        == 0
    )


def test_plain_lines_are_printed_without_a_terminal(tiny: Path, run: Run) -> None:
    lines = run("teacher", tiny).out.splitlines()
    assert [line for line in lines if line.startswith("teacher  epoch 2/3  loss ")]
    assert not any("\x1b" in line for line in lines)


@pytest.mark.parametrize("what", [["models"], ["recipes"], ["taps", "resnet56"]])
def test_show(what: list[str], run: Run) -> None:
    result = run("show", *what)
    assert result.code == 0
    expected = {"models": "855,770", "recipes": "digits/resnet20-resnet8", "taps": "layer3.8.bn2"}
    assert expected[what[0]] in result.out


@needs_cifar10
def test_the_cifar10_recipe_on_the_official_batches(run: Run, tmp_path: Path) -> None:
    """All stages, one epoch of a few images each; what `test` says agrees with the summary."""
    recipe = "cifar10/resnet56-resnet20"
    settings = "model=resnet8", "args={width=2}"
    small = [f"{stage}.{setting}" for stage in ("teacher", "student") for setting in settings]
    overrides = [f"data.root={CIFAR10}", "data.limit=400", *small]
    overrides += [f"{stage}.epochs=1" for stage in ("teacher", "paraphraser", "student")]
    assert run("run", recipe, *overrides).code == 0
    work = Path("runs/resnet56-resnet20")
    assert run("test", recipe, work / STUDENT, *overrides, "--json", tmp_path / "out.json").code == 0
    summary = json.loads((work / "summary.json").read_text())
    assert json.loads((tmp_path / "out.json").read_text())["top1"] == summary["student"]["top1"]
