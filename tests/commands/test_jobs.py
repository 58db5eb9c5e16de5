"""A comparison in several processes: the same bytes, whatever happens to one of them."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from multiprocessing import Pipe
from pathlib import Path
from unittest.mock import Mock

import pytest
from rich.console import Console
from torch import Tensor

from conftest import Run, refused
from factor_transfer.commands import jobs
from factor_transfer.commands.compare import score
from factor_transfer.commands.jobs import Task, _available_bytes, _Pool, _Worker, default_jobs, plan
from factor_transfer.config.read import read_recipe
from factor_transfer.distributed.workers import starting_workers
from factor_transfer.errors import InputError
from factor_transfer.methods import KD, TERMS
from factor_transfer.pipeline.experiment import Experiment

KILLED = """
import multiprocessing, os, signal
from pathlib import Path
from factor_transfer import build_model

def build(num_classes, in_channels):
    if multiprocessing.parent_process() is not None and Path("kill").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return build_model("resnet8", num_classes, in_channels=in_channels, width=4)
"""


def experiment(tiny: Path, *overrides: str) -> Experiment:
    return Experiment(read_recipe(str(tiny), overrides), Path("runs/tiny"), Console(quiet=True), str(tiny))


def test_students_alone_start_at_once(tiny: Path) -> None:
    teacher, *rest = plan(experiment(tiny), ["student", "kd", "factor"], [3, 4], 2)
    assert teacher == Task("teacher", None, ("kd", "factor"), first=True)
    assert [(task.seed, task.methods, task.first) for task in rest] == [
        (3, ("student",), True),
        (4, ("student",), True),
        (3, ("kd", "factor"), False),  # one pass of the teacher serves both
        (4, ("kd", "factor"), False),
    ]
    cached = plan(experiment(tiny, "cache.views=2"), ["student", "kd", "factor"], [3], 1)
    assert [task.methods for task in cached[2:]] == [("kd",), ("factor",)]
    assert [task.name for task in plan(experiment(tiny), ["student"], [0], 2)] == ["teacher", "student, seed 0"]


@pytest.mark.parametrize(
    ("processes", "seeds", "groups"),
    [
        (2, 3, ["kd at factor", "kd at factor", "kd factor", "at"]),
        (3, 2, ["kd", "at", "factor", "kd", "at", "factor"]),
        (4, 2, ["kd factor", "at", "kd factor", "at"]),
        (8, 1, ["kd", "at", "factor"]),
        (1, 2, ["kd at factor", "kd at factor"]),
    ],
)
def test_the_last_seeds_are_divided_among_all_processes(
    processes: int, seeds: int, groups: list[str], tiny: Path
) -> None:
    tasks = plan(experiment(tiny), ["student", "kd", "at", "factor"], range(seeds), processes)
    assert [" ".join(task.methods) for task in tasks if not task.first] == groups


def test_as_many_as_processors_unless_they_cannot_import_a_term(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factor_transfer.commands.jobs._processors", lambda: 5)
    monkeypatch.setattr("factor_transfer.commands.jobs._available_bytes", lambda: 100 * 2**30)
    assert default_jobs(experiment(tiny)) == 5
    monkeypatch.setattr("factor_transfer.commands.jobs._available_bytes", lambda: 2 * 2**30)
    assert default_jobs(experiment(tiny)) == 1
    monkeypatch.setattr("factor_transfer.commands.jobs._available_bytes", lambda: 100 * 2**30)
    monkeypatch.setitem(TERMS, "own", type("Own", (KD,), {"__module__": "__main__"}))
    assert default_jobs(experiment(tiny)) == 1


def test_images_without_labels_need_memory_too(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process has them twice: alone, and joined with the labelled ones."""
    monkeypatch.setattr("factor_transfer.commands.jobs._processors", lambda: 5)
    one = experiment(tiny, "data.train=2000", "data.labelled=0.1")
    assert one.data.unlabelled is not None
    assert isinstance(one.data.unlabelled.images, Tensor)
    assert isinstance(one.data.train.images, Tensor)
    needed = jobs._PROCESS_BYTES + 3 * one.data.train.images.nbytes + 2 * one.data.unlabelled.images.nbytes
    monkeypatch.setattr("factor_transfer.commands.jobs._available_bytes", lambda: 3 * needed)
    assert default_jobs(one) == 3
    monkeypatch.setattr("factor_transfer.commands.jobs._available_bytes", lambda: 3 * needed - 1)
    assert default_jobs(one) == 2


def test_a_student_that_diverges_is_a_row_that_says_so(tiny: Path) -> None:
    diverging = experiment(tiny, "student.learning_rate=1e38", "student.epochs=1")
    task = Task("student, seed 0", 0, ("student",), first=True)
    kind, (found,) = jobs._outcome(diverging, task, score)
    assert kind == "done"
    assert found["top1"] is None
    assert "is not finite" in found["error"]


def test_the_memory_that_caches_files_is_available(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       24000000 kB\nMemFree:          500000 kB\nMemAvailable:   20000000 kB\n")
    assert _available_bytes(meminfo) == 20_000_000 * 1024
    for unknown in ("MemTotal: 24000000 kB\n", None):
        if unknown is None:
            meminfo.unlink()
        else:
            meminfo.write_text(unknown)
        assert _available_bytes(meminfo) > 0


@pytest.mark.parametrize(
    ("changes", "methods", "seeds"),
    [([], "student,kd,factor", 2), (["cache.views=2"], "kd,factor", 1)],
    ids=["lockstep", "cached"],
)
def test_several_processes_give_the_bytes_of_one(
    changes: list[str], methods: str, seeds: int, tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Mock(side_effect=starting_workers)
    monkeypatch.setattr(jobs, "starting_workers", start)
    given = [tiny, *changes, "--methods", methods, "--seeds", str(seeds)]
    several = run("compare", *given, "--jobs", "2", "--work-dir", "several")
    assert several.code == 0, several.err
    assert start.call_count == 2  # each of which reads the images once
    one = run("compare", *given, "--jobs", "1", "--work-dir", "one")
    assert one.code == 0, one.err
    weights = {path.parent.name: path.read_bytes() for path in Path("one").glob("*/weights.safetensors")}
    assert len(weights) == 2 + seeds * 3  # teacher, paraphraser, and the three students
    assert {path.parent.name: path.read_bytes() for path in Path("several").glob("*/weights.safetensors")} == weights
    found, expected = (json.loads(Path(work, "comparison.json").read_text()) for work in ("several", "one"))
    for run_found, run_expected in zip(found["runs"], expected["runs"], strict=True):
        assert run_found | {"seconds": 0} == run_expected | {"seconds": 0}
    assert "student-kd-seed0  epoch 3/3" in several.out
    if not changes:
        again = run("compare", *given, "--jobs", "1", "--work-dir", "several")
        assert again.out.count("up to date") >= 8


def test_a_killed_process_gives_one_message_and_the_same_command_resumes(tiny: Path, run: Run) -> None:
    Path("killed.py").write_text(KILLED)
    Path("kill").touch()
    given = [tiny, "student={model='killed:build', epochs=2, batch_size=24}", "--methods", "student,kd", "--jobs", "2"]
    refused(run("compare", *given), "ended by signal 9")
    Path("kill").unlink()
    result = run("compare", *given[:-1], "1")
    assert result.code == 0, result.err


def test_sigterm_stops_all_processes_and_the_same_command_resumes(tiny: Path, run: Run) -> None:
    # With cached factors, each student has its own process, and no task is left when the signal comes.
    settings = ["teacher.epochs=1", "paraphraser.epochs=1", "student.epochs=16", "cache.views=1"]
    words = ["compare", str(tiny), *settings, "--methods", "kd,factor", "--seeds", "1", "--jobs", "2"]
    words += ["--work-dir", "stopped"]
    command = [sys.executable, "-m", "factor_transfer", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    ) as process:
        while process.poll() is None and not list(Path("stopped").glob("student-factor-*/last.ckpt")):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert errors.startswith("Stopped: "), errors
    assert "student-factor-seed0 has completed" in errors
    assert "of 16 epochs" in errors
    assert "Traceback" not in errors
    # In one process, whose bytes are those of several.
    assert run(*words[:-3], "1", "--work-dir", "stopped").code == 0
    assert run(*words[:-3], "1", "--work-dir", "through").code == 0
    for path in Path("through").glob("*/weights.safetensors"):
        assert path.read_bytes() == Path("stopped", path.parent.name, path.name).read_bytes()


def test_a_process_that_dies_before_its_task_is_one_message(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_work", die)
    pool = _Pool(1, experiment(tiny), tiny, {}, score)
    with pytest.raises(InputError, match=r"the process of student, seed 0 ended with exit code 3; it may have been"):
        pool.run([Task("student, seed 0", 0, ("student",), first=True)])


def die(*_: object) -> None:
    os._exit(3)


def test_a_terminal_has_a_row_per_process_and_keeps_the_epochs(tiny: Path) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, highlight=False)
    pool = _Pool(2, Experiment(read_recipe(str(tiny)), Path("work"), console, ""), tiny, {}, print)
    connection, _ = Pipe()
    tasks = plan(pool.experiment, ["student", "kd", "factor"], [0], 1)[1:]
    alone, both = (_Worker(None, connection, task) for task in tasks)

    def rows() -> list[str]:
        progress = pool.display._progress
        assert progress is not None
        progress.refresh()
        return [str(task.description) for task in progress.tasks]

    pool._show(alone, "start", "student-alone-seed0", 9, 3)
    for stage in ("student-kd-seed0", "student-factor-seed0"):
        pool._show(both, "start", stage, 9, 0)
        pool._show(both, "update", stage, 2, "loss 0.1")
    assert rows() == ["student-alone-seed0", "student-kd-seed0, student-factor-seed0"]
    pool._show(both, "epoch", "student-kd-seed0  epoch 1/3")
    pool._show(both, "stop", "student-kd-seed0")
    assert rows() == ["student-alone-seed0", "student-factor-seed0"]
    pool._show(both, "stop", "student-factor-seed0")
    assert rows() == ["student-alone-seed0"]
    pool._show(alone, "stop", "student-alone-seed0")
    assert pool.display._progress is None
    plain = re.sub(r"\x1b\[[\d;]*m", "", screen.getvalue())
    lines = re.sub(r"\x1b\[[\d;?]*[A-Za-z]|\r", "\n", plain).splitlines()
    assert "student-kd-seed0  epoch 1/3" in lines
    assert all(len(line) <= 80 for line in lines)
    assert any(line.startswith("student-kd-seed0, ") and " 4/18 " in line for line in lines), lines


@pytest.mark.parametrize("count", ["0", "-1"])
def test_bad_numbers_of_jobs(count: str, tiny: Path, run: Run) -> None:
    refused(run("compare", tiny, "--jobs", count), "--jobs must be at least 1")
