"""How many threads a training has: those that are fastest, or those that it began with."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from conftest import Run, refused
from factor_transfer.distributed.threads import fastest, is_choice_free, measure_threads
from factor_transfer.pipeline.stages import threads
from factor_transfer.training import trainer


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """PyTorch has two threads, and nobody has asked for them."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS")
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("seconds", "expected"),
    [((1.0, 2.0), 4), ((1.0, 0.95, 0.92), 4), ((1.0, 0.5, 0.1), 1), ((1.0, 0.5, 0.49), 2), ((1.0, 0.5, 0.6), 2)],
)
def test_fewer_threads_are_chosen_only_if_faster(seconds: tuple[float, ...], expected: int) -> None:
    torch.set_num_threads(4)
    left = list(seconds)
    assert fastest(measure_threads(lambda: left.pop(0))) == expected
    assert left == []
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("two_threads")
def test_threads_are_measured_unless_chosen_by_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_choice_free()
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert not is_choice_free()
    monkeypatch.delenv("OMP_NUM_THREADS")
    torch.set_num_threads(1)
    assert not is_choice_free()


def recorded(work: str) -> set[int]:
    return {json.loads(path.read_text())["threads"] for path in Path(work).glob("*/stage.json")}


def weights(work: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(Path(work).glob("*/*.safetensors"))]


@pytest.mark.usefixtures("two_threads")
def test_a_measurement_changes_only_the_number_of_threads(
    tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in statistics and random numbers, nor in the memory of features that CRD updates in each step."""
    settings = ["transfer.crd.weight=0.5", "student.epochs=1", "paraphraser.epochs=1"]
    assert run("run", tiny, *settings, "threads=1", "--work-dir", "given").code == 0
    monkeypatch.setattr(threads, "_LEAST_S", 0.0)
    monkeypatch.setattr(threads, "fastest", lambda found: 1)
    measured = run("run", tiny, *settings, "--work-dir", "auto")
    assert measured.code == 0, measured.err
    # Of all images of a step, or of fewer where the machine is busy.
    assert re.search(r"student-factor\+crd-seed0  1 of 2 threads: a step of \d+ images takes ", measured.out)
    assert recorded("given") == recorded("auto") == {1}
    assert weights("given") == weights("auto")
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_short_trainings_are_not_measured(tiny: Path, run: Run) -> None:
    assert "threads" not in run("teacher", tiny, "teacher.epochs=1", "--work-dir", "short").out
    assert recorded("short") == {2}


@pytest.mark.usefixtures("two_threads")
def test_a_resumed_training_has_the_threads_it_began_with(
    tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "_LEAST_S", 0.0)
    monkeypatch.setattr(threads, "fastest", lambda found: 3)
    assert run("teacher", tiny, "--work-dir", "through").code == 0

    def die(*_: object) -> None:
        raise SystemError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_training", die)
        with pytest.raises(SystemError, match="killed"):
            run("teacher", tiny, "--work-dir", "killed")
    monkeypatch.setattr(threads, "fastest", lambda found: 1)
    resumed = run("teacher", tiny, "--work-dir", "killed")
    assert "teacher  3 threads, as until now" in resumed.out
    assert recorded("killed") == recorded("through") == {3}
    assert weights("killed") == weights("through")


def test_zero_threads_are_refused(tiny: Path, run: Run) -> None:
    refused(run("teacher", tiny, "threads=0"), "threads")
    refused(run("teacher", tiny, "threads=many"), "threads")
