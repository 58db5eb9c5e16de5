"""Two processes cannot use one work dir at the same time; a dead one does not stand in the way."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import Run, refused
from factor_transfer.errors import InputError
from factor_transfer.pipeline.lock import hold, still_held
from factor_transfer.training.log import RunLog

HOLDER = """
import sys, time
from pathlib import Path
from factor_transfer.pipeline.lock import hold, still_held
from factor_transfer.training.log import RunLog
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def holder(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", HOLDER, str(finished)], stdout=subprocess.PIPE, text=True)


def test_a_second_process_is_refused_and_the_holder_named(
    holder: subprocess.Popen[str], finished: Path, tiny: Path, run: Run
) -> None:
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    for command in ("run", "teacher", "pretrain", "train", "compare"):
        refused(
            run(command, tiny, "--work-dir", finished),
            "is in use by process",
            f"process {holder.pid} on ",
            "--work-dir",
        )
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before
    assert run("test", tiny, finished / "teacher").code == 0  # which only reads


def test_a_job_of_the_holder_is_admitted(
    holder: subprocess.Popen[str], finished: Path, tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = json.loads((finished / ".holder.json").read_text())["token"]
    monkeypatch.setenv("FACTOR_TRANSFER_HOLDER", token)
    assert run("teacher", tiny, "--work-dir", finished).code == 0
    monkeypatch.setenv("FACTOR_TRANSFER_HOLDER", "another")
    refused(run("teacher", tiny, "--work-dir", finished), "is in use")


def test_a_dead_process_holds_no_lock(holder: subprocess.Popen[str], finished: Path, tiny: Path, run: Run) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    assert run("teacher", tiny, "--work-dir", finished).code == 0


def test_a_lock_can_be_nested_and_is_released(tmp_path: Path) -> None:
    with hold(tmp_path), hold(tmp_path / "."):
        assert "FACTOR_TRANSFER_HOLDER" in os.environ
    assert "FACTOR_TRANSFER_HOLDER" not in os.environ
    with pytest.raises(ValueError, match="here"), hold(tmp_path):
        raise ValueError("here")
    with hold(tmp_path):
        pass


def test_a_damaged_note_of_the_holder_does_not_matter(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"token": null}'):
        (tmp_path / ".holder.json").write_text(text)
        with hold(tmp_path):
            pass


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot use work dir"), hold(tmp_path / "file" / "below"):
        pass


def another(work_dir: Path) -> dict[str, Any]:
    """A process that holds the work dir on its own behalf, not on that of this one."""
    environment = {key: value for key, value in os.environ.items() if key != "FACTOR_TRANSFER_HOLDER"}
    words = [sys.executable, "-c", HOLDER, str(work_dir)]
    return {"args": words, "env": environment, "stdout": subprocess.PIPE, "text": True}


def test_a_lock_whose_file_was_removed_is_taken_again(tmp_path: Path) -> None:
    with hold(tmp_path):
        still_held(tmp_path)
        (tmp_path / ".lock").unlink()
        still_held(tmp_path)
        done = subprocess.run(**another(tmp_path), stderr=subprocess.PIPE, check=False)
        assert "is in use by process" in done.stderr
    with hold(tmp_path):
        pass


def test_a_training_stops_where_its_lock_was_removed_and_taken(tmp_path: Path, tiny: Path, run: Run) -> None:
    work = tmp_path / "work"
    other: list[subprocess.Popen[str]] = []
    said = RunLog.epoch

    def steal(self: RunLog, *arguments: Any) -> None:
        said(self, *arguments)
        if not other:
            (work / ".lock").unlink()
            other.append(subprocess.Popen(**another(work)))
            assert other[0].stdout is not None
            assert other[0].stdout.readline() == "held\n"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "epoch", steal)
        stopped = run("teacher", tiny, "--work-dir", work)
    refused(stopped, r"\.lock was removed while this process held it", f"process {other[0].pid} on ")
    other[0].kill()
    other[0].communicate()
    done = run("teacher", tiny, "--work-dir", work)
    assert done.code == 0, done.err


def test_of_two_recipes_that_claim_a_new_work_dir_one_gets_it(tiny: Path, tmp_path: Path) -> None:
    """Both find the folder free, and only then ask for it."""
    # Two forks of a process that has imported everything.
    script = """
import os, sys
from factor_transfer.cli import main
from factor_transfer.pipeline import artefact
from factor_transfer.pipeline.stages import teacher
check = artefact.check_owner
def check_and_wait(work_dir, recipe):
    found = check(work_dir, recipe)
    if not checked:
        checked.append(found)
        os.write(ready[1], b"r")
        os.read(go[0], 1)
    return found
checked, ready, go = [], os.pipe(), os.pipe()
artefact.check_owner = check_and_wait
children = {}
for name in ("one", "two"):
    child = os.fork()
    if not child:
        sys.argv[1:] = ["teacher", sys.argv[1], f"name={name}", "teacher.epochs=1", "--work-dir", "work"]
        main()
    children[child] = name
for _ in children:
    os.read(ready[0], 1)
os.write(go[1], b"gg")
codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
assert codes == [0, 2], codes
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tiny)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "belongs to the recipe" in done.stderr or "is in use by" in done.stderr


def test_a_folder_of_somebody_else_stays_as_it_was(tmp_path: Path, tiny: Path, run: Run) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    refused(run("teacher", tiny, "--work-dir", tmp_path / "mine"), "was not made by factor-transfer")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_a_work_dir_whose_name_is_no_text_is_refused(tiny: Path, run: Run) -> None:
    refused(run("teacher", tiny, "--work-dir", os.fsdecode(b"caf\xe9")), r"caf.*: its name is not UTF-8")
