"""What a training keeps when it is stopped, killed, or runs into what it cannot go on with."""

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from conftest import Run, refused
from factor_transfer import Supervised
from factor_transfer.errors import InputError, Interrupted
from factor_transfer.files import write_atomic
from factor_transfer.pipeline.stages import teacher as stages
from factor_transfer.training import checkpoint as training_state
from factor_transfer.training import trainer
from factor_transfer.training.checkpoint import CheckpointInterval, latest_training, read_training, save_training
from factor_transfer.training.optim import Optimization
from small_training import metrics, train

EACH_STEP = CheckpointInterval(minutes=1e-9)
FIGURES = [50.0, 70.0, 70.0, 60.0]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        value.numpy().tobytes() == other[key].numpy().tobytes() for key, value in one.items()
    )


@pytest.mark.parametrize("killed_at", [1, 4, 5, 9, 11])
def test_a_kill_in_the_middle_of_an_epoch_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    """Dropout, augmentation, schedule, statistics, figures: to the byte; three steps an epoch."""
    (tmp_path / "through").mkdir()
    (tmp_path / "killed").mkdir()
    through = train(tmp_path / "through")

    def save_and_die(path: Path, state: Any) -> None:
        save_training(path, state)
        if state["epoch"] * 3 + state["step"] == killed_at:
            raise SystemError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_training", save_and_die)
        with pytest.raises(SystemError, match="killed"):
            train(tmp_path / "killed", interval=EACH_STEP)
    resumed = train(tmp_path / "killed", validation=FIGURES[killed_at // 3 :])
    assert same(resumed.state, through.state)
    figures = [
        [
            {key: line[key] for key in ("epoch", "loss", "accuracy", "learning_rate")}
            for line in metrics(tmp_path / name)
        ]
        for name in ("through", "killed")
    ]
    assert figures[0] == figures[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_completes_and_saves_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    (tmp_path / "through").mkdir()
    (tmp_path / "stopped").mkdir()
    through = train(tmp_path / "through")
    forward, steps = Supervised.forward, 0

    def asked(self: Supervised, *batch: torch.Tensor) -> Any:
        nonlocal steps
        steps += 1
        if steps == 5:
            signal.raise_signal(number)
        return forward(self, *batch)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(Supervised, "forward", asked)
        with pytest.raises(Interrupted, match="student has completed 1 of 4 epochs and 2 of 3 steps") as stopped:
            train(tmp_path / "stopped")
    assert stopped.value.signal == number
    assert signal.getsignal(number) == before
    assert same(train(tmp_path / "stopped", validation=FIGURES[1:]).state, through.state)


def test_a_second_signal_leaves_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(self: Supervised, *_: torch.Tensor) -> Any:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("still here")

    monkeypatch.setattr(Supervised, "forward", asked)
    with pytest.raises(Interrupted, match="all complete work is saved"):
        train(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_exit_codes(tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    """Also outside of a training: here while a stage begins."""
    monkeypatch.setattr(stages, "start_stage", lambda *_: signal.raise_signal(number))
    result = run("teacher", tiny)
    assert result.code == 128 + number
    assert result.err.startswith("Stopped: ")
    assert len(result.err.splitlines()) <= 2


@pytest.mark.parametrize("works", [True, False])
def test_requeueing_in_slurm_is_optional(
    tmp_path: Path, tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    scontrol = tmp_path / "bin/scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n{"exit 0" if works else "echo busy >&2; exit 1"}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    move = trainer.Trainer.optimizer_step

    def asked(self: trainer.Trainer, *arguments: Any) -> None:
        signal.raise_signal(signal.SIGUSR1)
        move(self, *arguments)

    monkeypatch.setattr(trainer.Trainer, "optimizer_step", asked)
    result = run("teacher", tiny)
    assert result.code == 128 + signal.SIGUSR1
    assert not (tmp_path / "asked").exists()
    result = run("teacher", tiny, "checkpoint.requeue=true")
    assert result.code == 128 + signal.SIGUSR1
    assert (tmp_path / "asked").read_text() == "requeue 17\n"
    assert ("job 17 was requeued" if works else "job 17 was not requeued: busy") in result.err


def test_the_interval_of_checkpoints_is_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[int, int]] = []
    monkeypatch.setattr(trainer, "save_training", lambda _, state: written.append((state["epoch"], state["step"])))
    train(tmp_path, interval=CheckpointInterval(epochs=3))
    assert written == [(3, 0), (4, 0)]
    written.clear()
    train(tmp_path, interval=EACH_STEP)
    assert written == [(step // 3, step % 3) for step in range(1, 13)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint and the one before it."""
    folder = tmp_path_factory.mktemp("two")
    for epoch in (1, 2):
        save_training(folder / "last.ckpt", {"epoch": epoch, "method": {"a": torch.arange(4.0) + epoch}})
    return folder


@settings(max_examples=60)
@given(place=st.floats(0, 1, exclude_max=True), change=st.integers(0, 255))
def test_a_damaged_checkpoint_is_detected_and_the_previous_one_used(
    two: Path, tmp_path: Path, place: float, change: int
) -> None:
    whole = (two / "last.ckpt").read_bytes()
    (tmp_path / "previous-last.ckpt").write_bytes((two / "previous-last.ckpt").read_bytes())
    at = int(place * len(whole))
    flipped = bytes([whole[at] ^ change]) if change else b""  # 0: it is missing
    (tmp_path / "last.ckpt").write_bytes(whole[:at] + flipped + whole[at + 1 :])
    with pytest.raises(InputError, match=r"last\.ckpt is damaged"):
        read_training(tmp_path / "last.ckpt")
    state, note = latest_training(tmp_path / "last.ckpt")
    assert state["epoch"] == 1
    assert "last.ckpt is damaged" in note
    assert "previous-last.ckpt" in note


def test_two_damaged_checkpoints_are_an_error(two: Path, tmp_path: Path) -> None:
    for name in ("last.ckpt", "previous-last.ckpt"):
        (tmp_path / name).write_bytes((two / name).read_bytes()[:-1])
    with pytest.raises(InputError, match=r"previous-last\.ckpt is damaged"):
        latest_training(tmp_path / "last.ckpt")


def test_a_training_resumes_from_the_checkpoint_before_a_damaged_one(tmp_path: Path) -> None:
    (tmp_path / "through").mkdir()
    through = train(tmp_path / "through")
    checkpoint = tmp_path / "through/last.ckpt"
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[:1000] + b"?" + whole[1001:])
    assert same(train(tmp_path / "through", validation=FIGURES[3:]).state, through.state)


@pytest.mark.parametrize("moment", range(4))
def test_a_kill_at_any_moment_of_writing_leaves_a_whole_checkpoint(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """Before each change of the folder, and after the last."""
    for epoch in (1, 2):
        save_training(tmp_path / "last.ckpt", {"epoch": epoch})
    replace, count = Path.replace, 0

    def step() -> None:
        nonlocal count
        if count == moment:
            os._exit(9)
        count += 1

    def replaced(self: Path, target: Path) -> Path:
        step()
        done = replace(self, target)
        step()
        return done

    child = os.fork()
    if not child:
        Path.replace = replaced  # type: ignore[method-assign, assignment]
        save_training(tmp_path / "last.ckpt", {"epoch": 3})
        os._exit(0)
    os.waitpid(child, 0)
    state, note = latest_training(tmp_path / "last.ckpt")
    assert not note
    assert state["epoch"] == (3 if moment == 3 else 2)


def explode(steps: set[int]) -> Callable[..., Any]:
    """The loss of these steps (1…) is not finite, and neither are the statistics that they leave."""
    forward, count = Supervised.forward, 0

    def broken(self: Supervised, images: torch.Tensor, *batch: torch.Tensor) -> Any:
        nonlocal count
        count += 1
        return forward(self, images.float() * (float("inf") if count in steps else 1.0), *batch)

    return broken


def test_steps_that_are_not_finite_can_be_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Supervised, "forward", explode({2, 8}))
    outcome = train(tmp_path, max_skipped=2)
    assert all(value.isfinite().all() for value in outcome.state.values())
    assert [line.get("skipped") for line in metrics(tmp_path)] == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("steps", "skips", "message"),
    [
        ({1, 2, 4}, 2, "3 steps had a gradient that is not finite, but max_skipped allows only 2"),
        ({2}, 0, "epoch 1, step 2: loss nan"),
    ],
)
def test_steps_that_are_not_finite_end_it_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: set[int], skips: int, message: str
) -> None:
    monkeypatch.setattr(Supervised, "forward", explode(steps))
    with pytest.raises(InputError, match=message):
        train(tmp_path, max_skipped=skips)


def test_skipping_changes_nothing_if_all_steps_are_finite(tmp_path: Path) -> None:
    for name in ("without", "with"):
        (tmp_path / name).mkdir()
    assert same(train(tmp_path / "without").state, train(tmp_path / "with", max_skipped=3).state)


def test_on_nonfinite_is_a_setting_of_the_recipe(tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Supervised, "forward", explode({4}))
    refused(run("teacher", tiny), "not finite in epoch 2, step 1", 'on_nonfinite="skip"')
    monkeypatch.setattr(Supervised, "forward", explode({1}))
    result = run("teacher", tiny, "on_nonfinite=skip")  # goes on behind epoch 1
    assert result.code == 0, result.err
    assert "1 steps skipped" in result.out


def test_gradients_can_be_clipped(tmp_path: Path) -> None:
    """One step of plain SGD moves the weights by no more than learning rate times the clipped norm."""
    torch.manual_seed(0)
    seen: list[float] = []
    step = torch.optim.SGD.step

    def noted(self: torch.optim.SGD, *arguments: Any) -> Any:
        parameters = [p for group in self.param_groups for p in group["params"]]
        seen.append(float(torch.nn.utils.get_total_norm([p.grad for p in parameters])))
        return step(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", noted)
        train(tmp_path, optimization=Optimization(learning_rate=0.05, clip_norm=0.1))
    assert max(seen) == pytest.approx(0.1, rel=1e-3)


class Plain(nn.Module):
    """No batch norm, no dropout: the mean over a batch is that over its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_accumulated_parts_equal_the_whole_batch(tmp_path: Path, parts: int) -> None:
    """16, 16 and 8 images a step: in equal and in unequal parts."""
    outcomes = []
    for accumulate in (1, parts):
        folder = tmp_path / str(accumulate)
        folder.mkdir()
        outcomes.append(train(folder, network=Plain, accumulate=accumulate))
    for key, value in outcomes[0].state.items():
        assert torch.allclose(value, outcomes[1].state[key], rtol=1e-4, atol=1e-6), key
    for one, other in zip(metrics(tmp_path / "1"), metrics(tmp_path / str(parts)), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["accuracy"] == pytest.approx(other["accuracy"], rel=1e-5)


def test_parts_that_a_batch_cannot_be_divided_into(tiny: Path, run: Run) -> None:
    refused(
        run("teacher", tiny, "teacher.accumulate=5"), "24 images cannot be divided into 5 equal parts", "multiple of 5"
    )
    assert run("teacher", tiny, "teacher.accumulate=4").code == 0


def test_out_of_memory_is_reported_with_a_remedy(tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Supervised, *_: torch.Tensor) -> Any:
        return torch.empty(2**60)

    monkeypatch.setattr(Supervised, "forward", full)
    refused(run("teacher", tiny), "out of memory in teacher, in a step of 24 images", r"accumulate=2 .*\[teacher\]")


def test_a_disk_that_is_full(work: Path, tiny: Path, run: Run) -> None:
    """The system itself refuses: for a while no file may grow beyond 60,000 bytes."""
    before = {path: path.read_bytes() for path in work.rglob("*.*") if path.is_file()}
    limit, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        refused(run("train", tiny, "student.seed=1", "student.args.width=16", "--work-dir", work), "File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    for path, content in before.items():
        assert path.name == ".holder.json" or path.read_bytes() == content, path
    assert not list(work.rglob(".last*"))
    assert run("train", tiny, "student.seed=1", "student.args.width=16", "--work-dir", work).code == 0


def test_a_folder_that_cannot_be_written(tiny: Path, run: Run) -> None:
    refused(run("teacher", tiny, "--work-dir", "/proc/nowhere"), "cannot use work dir /proc/nowhere")


def test_a_file_that_is_removed_meanwhile(tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole stage is taken away while it is trained: its checkpoint comes back, and the command goes on."""
    end_epoch = trainer.Trainer.end_epoch

    def removed(self: trainer.Trainer, epoch: int, waited: float) -> None:
        end_epoch(self, epoch, waited)
        if epoch == 1:
            (self.checkpoint.parent / "stage.json").unlink()

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "end_epoch", removed)
        refused(run("teacher", tiny), r"cannot read runs/tiny/teacher/stage\.json")
    assert Path("runs/tiny/teacher/last.ckpt").exists()


def test_unfinished_files_of_a_killed_process_are_removed(
    tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, *_: Any) -> None:
        path.with_name(".last.ckpt.abc").write_bytes(b"half")
        raise SystemError("killed")

    monkeypatch.setattr(training_state, "write_atomic", killed)
    with pytest.raises(SystemError):
        run("teacher", tiny)
    monkeypatch.setattr(training_state, "write_atomic", write_atomic)
    assert Path("runs/tiny/teacher/.last.ckpt.abc").exists()
    assert run("teacher", tiny).code == 0
    assert not Path("runs/tiny/teacher/.last.ckpt.abc").exists()
