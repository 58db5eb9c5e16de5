"""Jobs of a comparison, as far as that needs no Slurm; with a real one they are tested by ``tests/slurm/run.sh``."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from conftest import ROOT, Run, refused
from factor_transfer.commands import slurm
from factor_transfer.config.read import read_recipe

TOOLS = ROOT / "tools"


def test_no_slurm_and_no_submitit(tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    refused(
        run("compare", tiny, "--slurm", "gpu"), "sbatch was not found", "without --slurm, compare runs on this machine"
    )
    monkeypatch.setattr(slurm, "installed", lambda _: False)
    refused(run("compare", tiny, "--slurm", "gpu"), r"pip install 'factor-transfer\[slurm\]'")


def test_the_student_alone_learns_from_labels(tiny: Path) -> None:
    for row in ("student", "student,student.epochs=2"):
        recipe = read_recipe(tiny, ["student.labels=none", "student.finetune.epochs=1", *slurm._as_overrides(row)])
        assert (recipe.method, recipe.student.labels) == ("student", "all")
    kd = read_recipe(tiny, ["student.labels=none", "student.finetune.epochs=1", *slurm._as_overrides("kd")])
    assert kd.student.labels == "none"


def test_the_resources_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/sbatch")
    jobs = slurm.Jobs("gpu", "time=60 gpus_per_node=1 qos='a b'")
    assert jobs.parameters == {"partition": "gpu", "time": 60, "gpus_per_node": 1, "qos": "a b"}
    for wrong in ("time", "tiem=60", "setup=rm"):
        with pytest.raises(ValueError, match=f"invalid --slurm-args '{wrong}'; valid are"):
            slurm.Jobs("gpu", wrong)


@pytest.fixture
def called(tmp_path: Path) -> Path:
    """A folder of programs that only write down how they were called."""
    folder = tmp_path / "a bin"
    folder.mkdir()
    for name in ("srun", "python"):
        (folder / name).write_text(
            f'#!/bin/sh\nfor word in "$@"; do echo "$word"; done > "{tmp_path}/called"\nexit 7\n'
        )
        (folder / name).chmod(0o755)
    return folder


def start(script: str, *arguments: str, path: Path | None, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{path}:/usr/bin:/bin" if path else "/bin", "PYTHON": f"{path}/python", **variables}
    words = ["sh", str(TOOLS / script), *arguments]
    return subprocess.run(words, capture_output=True, text=True, check=False, env=environment)


def words(tmp_path: Path) -> list[str]:
    return (tmp_path / "called").read_text().splitlines()


def test_train_by_srun_and_by_torchrun(tmp_path: Path, called: Path) -> None:
    given = ["my recipe.toml", "a work dir", "student.epochs=3", "data.root=/a b"]
    resources = {"GPUS": "4", "GPUS_PER_NODE": "2", "CPUS_PER_TASK": "3", "SRUN_ARGS": "--time=5 --qos=low"}
    done = start("dist_train.sh", "part", "a job", *given, path=called, STAGE="train", **resources)
    assert done.returncode == 7  # the launcher's own
    command = ["-m", "factor_transfer", "train", given[0], "--work-dir", *given[1:]]
    options = ["--partition=part", "--job-name=a job", "--ntasks=4", "--ntasks-per-node=2", "--cpus-per-task=3"]
    asked = [*options, "--kill-on-bad-exit=1", "--time=5", "--qos=low", "--gres=gpu:2"]
    assert words(tmp_path) == [*asked, f"{called}/python", *command]
    start("dist_train.sh", "part", "job", *given, path=called, GPUS="2", GPUS_PER_NODE="0")
    assert not any("gres" in word for word in words(tmp_path))
    start("dist_train.sh", "local", "job", *given, path=called, GPUS="2", STAGE="train")
    torchrun = ["-m", "torch.distributed.run", "--nnodes", "1", "--nproc_per_node", "2", "--standalone"]
    assert words(tmp_path) == [*torchrun, *command]
    nodes = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "first", "PORT": "99"}
    start("dist_train.sh", "local", "job", *given, path=called, GPUS="4", STAGE="train", **nodes)
    there = ["--node_rank", "1", "--master_addr", "first", "--master_port", "99"]
    assert words(tmp_path) == [*torchrun[:3], "2", "--nproc_per_node", "2", *there, *command]


def test_test(tmp_path: Path, called: Path) -> None:
    start("dist_test.sh", "local", "job", "r.toml", "a dir", "--eval", "accuracy,f1", path=called)
    assert words(tmp_path)[-6:] == ["factor_transfer", "test", "r.toml", "a dir", "--eval", "accuracy,f1"]


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["part", "job", "r.toml"], {}, "usage: sh tools/dist_train.sh PARTITION JOB_NAME RECIPE WORK_DIR"),
        (["part", "job", "r.toml", "w"], {"STAGE": "all"}, "STAGE is all; it must be teacher, pretrain, train or run"),
        (["part", "job", "r.toml", "w"], {"GPUS": "two"}, "GPUS is two; it must be a number"),
        (["part", "job", "r.toml", "w"], {"GPUS": "3", "NNODES": "2"}, "3 processes cannot be divided among 2 nodes"),
        (["part", "job", "r.toml", "w"], {"PATH": "/bin"}, "srun is not here.*`local` trains on this machine"),
    ],
)
def test_what_is_refused(
    called: Path, tmp_path: Path, arguments: list[str], variables: dict[str, str], message: str
) -> None:
    if "PATH" in variables:
        tools = tmp_path / "tools"
        tools.mkdir()
        for name in ("dirname", "grep", "sh"):
            (tools / name).symlink_to(shutil.which(name) or name)
        variables = {"PATH": str(tools)}
    done = start("dist_train.sh", *arguments, path=called, **variables)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.splitlines()) == 1
    assert re.search(message, done.stderr), done.stderr
    assert not (tmp_path / "called").exists()
