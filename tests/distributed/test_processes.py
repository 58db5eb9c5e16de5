"""Several processes against one: what they train, how they evaluate, and what happens when one of them stops."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import ROOT, TINY, Run
from factor_transfer.data import Augment, Batches, Split, in_order
from factor_transfer.distributed.launch import launch_info
from factor_transfer.errors import InputError
from factor_transfer.state_dicts import read_weights

# Two steps an epoch, of which the second is of 12 images and can be divided, too.
BATCHES = [f"{stage}.batch_size=60" for stage in ("teacher", "paraphraser", "student")]
STEPS = ["teacher.batch_size=72", "teacher.epochs=4"]  # one an epoch, so that metrics.jsonl has each one's loss
PLAIN = ["teacher.model=plain:network", "teacher.args={}", *STEPS, "augment.flip=false"]
SYNCED = ["sync_batch_norm=true", *STEPS]
FAST = ["cache.views=2", "compile=on", "precision=bf16-mixed", "teacher.accumulate=2", "student.accumulate=2"]
FEW = ["data.train=240", "data.labelled=0.2", "teacher.epochs=1", "student.epochs=1"]  # 36 of 180 have labels
MIXED = [*FEW, "paraphraser.epochs=1", "transfer.method=factor+dkd", "sync_batch_norm=true", "augment.flip=false"]
LONG = ["teacher.epochs=4", "sync_batch_norm=true"]

NETWORK = """
from torch import nn

def network(num_classes, in_channels):
    layers = nn.Sequential(
        nn.Conv2d(in_channels, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes),
    )
    layers[0].auxiliary = nn.Linear(2, 2)  # which is never called
    return layers
"""


def losses(stage: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (stage / "metrics.jsonl").read_text().splitlines()]


def started(folder: Path, processes: int, commands: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], Any]:
    """The outcomes of commands that so many processes run, and how the launcher ended."""
    (folder / "commands.json").write_text(json.dumps(commands))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*launcher, str(ROOT / "tests" / "distributed" / "several.py"), "commands.json"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200, check=False)
    lines = (folder / "commands.out").read_text().splitlines() if (folder / "commands.out").exists() else []
    return [json.loads(line) for line in lines], ended


class Together:
    """What two or three processes have done."""

    def __init__(self, folder: Path, processes: int, finished: Path) -> None:
        self.folder, self.processes = folder, processes
        (folder / "tiny.toml").write_text(TINY)
        (folder / "plain.py").write_text(NETWORK)
        shutil.copytree(finished, folder / "finished")

        def command(*arguments: str, **event: Any) -> dict[str, Any]:
            return {"arguments": list(arguments), **event}

        commands = {
            "plain": command("teacher", "tiny.toml", *PLAIN, "--work-dir", "plain"),
            "test": command(
                "test", "tiny.toml", "finished/student-factor-seed0", "data.test=1100", "--json", "test.json"
            ),
            "mixed": command("run", "tiny.toml", *MIXED, "--work-dir", "mixed"),
        }
        if processes == 2:
            methods = "student,crd,factor+kd"
            commands |= {
                "synced": command("teacher", "tiny.toml", *SYNCED, "--work-dir", "synced"),
                "run": command("run", "tiny.toml", *BATCHES, *FAST, "--work-dir", "run"),
                "odd": command("teacher", "tiny.toml", "teacher.batch_size=25", "--work-dir", "odd"),
                "stopped": command(
                    "teacher", "tiny.toml", *LONG, "--work-dir", "stopped", rank=1, move=5, signal=signal.SIGTERM
                ),
                "compare": command("compare", "tiny.toml", "--methods", methods, "--seeds", "1", "--work-dir", "run"),
                "few": command("run", "tiny.toml", *FEW, "transfer.method=crd", "--work-dir", "few"),
            }
        else:
            # The last one: nobody comes back from it.
            commands["died"] = command(
                "teacher", "tiny.toml", "--work-dir", "died", rank=1, move=5, signal=signal.SIGKILL
            )
        began = time.monotonic()
        outcomes, self.ended = started(folder, processes, list(commands.values()))
        self.commands, self.outcomes = list(commands), dict(zip(commands, outcomes, strict=False))
        self.seconds = time.monotonic() - began


@pytest.fixture(scope="module", params=[2, 3])
def together(request: pytest.FixtureRequest, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Together:
    return Together(tmp_path_factory.mktemp("together"), request.param, finished)


def outcome(together: Together, name: str) -> dict[str, Any]:
    if name not in together.commands:
        pytest.skip("shown with two")
    assert name in together.outcomes, together.ended.stderr[-3000:]
    return together.outcomes[name]


@pytest.mark.parametrize(("name", "settings"), [("plain", PLAIN), ("synced", SYNCED)])
def test_each_step_has_the_same_loss(
    together: Together, tmp_path: Path, tiny: Path, run: Run, name: str, settings: list[str]
) -> None:
    """Without batch norm, and with one that is synchronised."""
    assert outcome(together, name)["code"] == 0, together.outcomes[name]["err"]
    (tmp_path / "plain.py").write_text(NETWORK)
    result = run("teacher", tiny, *settings)
    assert result.code == 0, result.err
    ours, theirs = losses(Path("runs/tiny/teacher")), losses(together.folder / name / "teacher")
    assert len(ours) == 4
    assert ours == pytest.approx(theirs, rel=1e-4)
    folders = Path("runs/tiny"), together.folder / name
    mine, others = (read_weights(folder / "teacher/weights.safetensors") for folder in folders)
    for key, value in mine.items():
        assert torch.allclose(value.float(), others[key].float(), rtol=1e-3, atol=1e-4), key


def test_parameters_that_are_never_used_are_left_out(together: Together) -> None:
    result = outcome(together, "plain")
    assert "teacher  model.model.0.auxiliary.weight, model.model.0.auxiliary.bias will not be trained" in result["out"]
    assert "will not be trained" not in outcome(together, "mixed")["out"]


def test_each_image_is_evaluated_once(together: Together, tmp_path: Path, tiny: Path, run: Run) -> None:
    """Three batches of evaluation, of which some process gets fewer than another."""
    assert outcome(together, "test")["code"] == 0, together.outcomes["test"]["err"]
    arguments = ["data.test=1100", "--json", tmp_path / "test.json"]
    run("test", tiny, together.folder / "finished/student-factor-seed0", *arguments)
    alone, theirs = (json.loads((folder / "test.json").read_text()) for folder in (tmp_path, together.folder))
    assert alone["count"] == 1100
    assert alone == theirs


def test_several_processes_run_all_stages_with_the_cache_and_compare(together: Together) -> None:
    result = outcome(together, "run")
    assert result["code"] == 0, result["err"]
    assert result["out"].count("  done in ") == 3
    assert "| student, Factor Transfer |" in result["out"]
    assert "is not compiled" not in result["out"]
    summary = json.loads((together.folder / "run/summary.json").read_text())
    assert summary["student"]["top1"] is not None


def test_a_batch_that_cannot_be_divided_is_refused(together: Together) -> None:
    result = outcome(together, "odd")
    assert result["code"] == 2
    assert "a batch of 25 images cannot be divided among" in result["err"]


def test_a_signal_to_one_stops_all_and_any_number_resumes(together: Together, tiny: Path, run: Run) -> None:
    """Only one of them gets the signal, in the middle of the second epoch; one process goes on."""
    result = outcome(together, "stopped")
    assert result["code"] == 128 + signal.SIGTERM
    assert "teacher has completed 1 of 4 epochs and 2 of 3 steps" in result["err"]
    work = Path(shutil.copytree(together.folder / "stopped", "stopped"))
    assert run("teacher", tiny, *LONG, "--work-dir", work).code == 0
    assert run("teacher", tiny, *LONG).code == 0
    assert losses(work / "teacher") == pytest.approx(losses(Path("runs/tiny/teacher")), rel=1e-3)


def test_methods_side_by_side(together: Together) -> None:
    result = outcome(together, "compare")
    assert result["code"] == 0, result["err"]
    assert "| Factor Transfer + KD |" in result["out"]
    assert "failed" not in result["out"].replace("failed: 0", "")


def test_images_without_labels_give_the_same_losses(together: Together, tiny: Path, run: Run) -> None:
    assert outcome(together, "mixed")["code"] == 0, together.outcomes["mixed"]["err"]
    assert run("run", tiny, *MIXED, "--work-dir", "mixed").code == 0
    for stage in ("teacher", "paraphraser", "student-factor+dkd-seed0"):
        assert losses(Path("mixed", stage)) == pytest.approx(losses(together.folder / "mixed" / stage), rel=1e-3), stage


def test_images_without_labels_and_a_term_with_parameters(together: Together) -> None:
    result = outcome(together, "few")
    assert result["code"] == 0, result["err"]
    assert "student-crd-seed0  crd uses labelled images only" in result["out"]
    assert "each batch has 8 labelled and 16 unlabelled images; 9 steps per epoch" in result["out"]
    assert "will not be trained" not in result["out"]


def test_the_death_of_one_process_ends_the_others(together: Together) -> None:
    if together.processes == 2:
        assert together.ended.returncode == 0, together.ended.stderr[-3000:]
        return
    assert together.ended.returncode != 0
    assert "SIGKILL" in together.ended.stderr
    # Where the launcher is quicker than the broken connection, it ends the others before they can say so.
    if "died" in together.outcomes:
        died = together.outcomes["died"]
        assert died["code"] in (2, 128 + signal.SIGTERM)
        assert any(words in died["err"] for words in ("lost the other processes", "Stopped: "))
    assert together.seconds < 90


def test_rank_and_world_come_from_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_STEP_ID", "SLURM_NTASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert launch_info().world == 1  # a batch script, which is none of its tasks
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_PROCID", "3")
    with pytest.raises(InputError, match="--ntasks-per-node"):
        launch_info()
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "2")
    assert launch_info() == (3, 4, 2, "srun")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="LOCAL_WORLD_SIZE"):
        launch_info()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert launch_info() == (1, 2, 2, "torchrun")


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("images", [24, 25, 28, 29, 30, 35])
def test_processes_share_the_batches_of_one(world: int, images: int) -> None:
    """The same images in the same batches; of a last one that is too small all have all."""
    split = Split(torch.zeros(images, 1, 2, 2, dtype=torch.uint8), torch.arange(images) % 2)
    alone = [batch.indices.tolist() for batch in Batches(split, 12, 0, Augment()).epoch(3)]  # type: ignore[union-attr]
    shares = [Batches(split, 12, 0, Augment(), rank=rank, world=world) for rank in range(world)]
    of_ranks = [[batch.indices.tolist() for batch in share.epoch(3)] for share in shares]  # type: ignore[union-attr]
    assert {len(each) for each in of_ranks} == {len(alone)}
    for step, whole in enumerate(alone):
        assert shares[0].size(step) == len(whole)
        parts = [each[step] for each in of_ranks]
        assert parts == [whole] * world if len(whole) < 2 * world else sum(parts, []) == whole  # noqa: RUF017
        assert all(len(part) > 1 for part in parts)
    later = [batch.indices.tolist() for batch in shares[0].epoch(3, 1)]  # type: ignore[union-attr]
    assert later == of_ranks[0][1:]
    evaluated = [batch.indices for rank in range(world) for batch in in_order(split, 5, "cpu", rank, world)]
    assert sorted(torch.cat(evaluated).tolist()) == list(range(images))  # type: ignore[arg-type]
