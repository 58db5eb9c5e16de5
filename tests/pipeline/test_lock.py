"""Two processes cannot use one work dir at the same time; a dead one does not stand in the way."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Run, refused
from factor_transfer.errors import InputError
from factor_transfer.pipeline.lock import hold

HOLDER = """
import sys, time
from pathlib import Path
from factor_transfer.pipeline.lock import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def holder(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", HOLDER, str(finished)], stdout=subprocess.PIPE, text=True)


def test_the_second_is_refused_and_told_who_holds_it(
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


def test_a_job_of_the_holder_is_let_in(
    holder: subprocess.Popen[str], finished: Path, tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = json.loads((finished / ".holder.json").read_text())["token"]
    monkeypatch.setenv("FACTOR_TRANSFER_HOLDER", token)
    assert run("teacher", tiny, "--work-dir", finished).code == 0
    monkeypatch.setenv("FACTOR_TRANSFER_HOLDER", "another")
    refused(run("teacher", tiny, "--work-dir", finished), "is in use")


def test_a_dead_process_holds_nothing(holder: subprocess.Popen[str], finished: Path, tiny: Path, run: Run) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    assert run("teacher", tiny, "--work-dir", finished).code == 0


def test_it_may_be_nested_and_is_given_back(tmp_path: Path) -> None:
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
