"""What all tests share: a recipe that trains in seconds, and the command line run in this process."""

import contextlib
import importlib
import io
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when PyTorch is imported

import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, settings

from factor_transfer.cli import main

# One thread: tests are small, and sums come out the same whatever else the machine is doing.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# The same examples in every run, however slow the machine is.
settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("repeatable")

ROOT = Path(__file__).parents[1]

# CIFAR-10 is not part of the project; tests that measure on it are skipped where it is absent.
CIFAR10 = Path(os.environ.get("FACTOR_TRANSFER_CIFAR10", ROOT / "data"))
needs_cifar10 = pytest.mark.skipif(
    not (CIFAR10 / "cifar-10-batches-bin").is_dir(),
    reason=f"no CIFAR-10 in {CIFAR10}; FACTOR_TRANSFER_CIFAR10 names the folder that holds cifar-10-batches-bin",
)

TINY = """precision = "32-true"
[data]
name = "synthetic"
train = 96
validation = 0.25

[augment]
crop_padding = 1
flip = true

[teacher]
model = "resnet8"
args = { width = 8 }
epochs = 3
batch_size = 24
schedule = "cosine"

[paraphraser]
epochs = 3
batch_size = 24
learning_rate = 0.01

[student]
model = "resnet8"
args = { width = 4 }
epochs = 3
batch_size = 24
schedule = "step"
milestones = [2]

[transfer.factor]
beta = 50
"""


# The files that take longest, which pytest-xdist should hand out first, so that all processes end at the same time.
LONGEST = ["test_docs.py", "test_processes.py", "test_export.py", "test_jobs.py", "test_hostile_files.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparisons run in this process, where tests can look at them, unless a test says otherwise."""
    monkeypatch.setattr("factor_transfer.commands.jobs._processors", lambda: 1)


@pytest.fixture(autouse=True)
def no_charts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports have no charts, which take a second to draw, unless a test is marked with ``charts``."""
    if request.node.get_closest_marker("charts") is None:
        leave_out_charts(monkeypatch)


def leave_out_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("factor_transfer.report.html.charts.chart", lambda *_: "")


@pytest.fixture
def no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exported files are not measured, for which they run in a process of their own."""
    costs = {"p50_ms": 0.25, "p95_ms": 0.5, "peak_bytes": 1000}
    monkeypatch.setattr("factor_transfer.export.compare_teacher.costs", lambda files: [costs] * len(files))


@dataclass
class Outcome:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


def unwrapped(text: str) -> str:
    """The text of an output without the line breaks that fit it into the console."""
    return " ".join(text.split("\n"))


def refused(result: Outcome, *messages: str) -> None:
    """It ended with code 2 and one message that says all of ``messages`` (regular expressions)."""
    assert result.code == 2
    assert result.err.startswith("Error: ")
    assert "Traceback" not in result.err
    assert len(result.err.splitlines()) <= 20
    for message in messages:
        assert re.search(message, result.err), result.err


def looked(run: Run, *arguments: str | Path) -> tuple[dict[str, Any], str]:
    """What ``check`` finds, and what it prints."""
    result = run("check", *arguments, "--json", "found.json")
    assert result.code == 0, result.err
    return json.loads(Path("found.json").read_text()), result.out


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line: ``run("train", recipe)``."""

    def call(*arguments: str | Path) -> Outcome:
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as leave:
            code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    return call


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the checkout's ``runs`` or ``data``, and none leaves anything in it."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """Each test starts with the handlers of a process in the foreground, and leaves none of its own behind.

    A shell without job control starts background jobs with SIGINT ignored, and children inherit that.
    """
    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGUSR1
    former = [signal.getsignal(number) for number in numbers]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in zip(numbers, former, strict=True):
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def torchvision_operators() -> Iterator[None]:
    """torchvision can be imported: where it was built for another torch, what it misses there is declared."""
    operators = torch.library.Library("torchvision", "FRAGMENT")  # as long as it lives
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")
    yield
    assert operators is not None


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A recipe whose three stages train in about a second."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder that ``make`` fills, once for all processes of pytest-xdist."""
    folder = tmp_path_factory.getbasetemp().parent / name
    if "PYTEST_XDIST_WORKER" not in os.environ:
        folder = tmp_path_factory.mktemp(name) / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            unfinished = folder.with_name(f"{name}-unfinished")
            make(unfinished)
            unfinished.rename(folder)
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work dir of a finished run of the tiny recipe, with its baseline. Not to be changed: copy it."""
    recipe = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    recipe.write_text(TINY)

    def make(work: Path) -> None:
        with pytest.raises(SystemExit, match=r"^0$"):
            main(["run", str(recipe), "--work-dir", str(work), "--baseline"])

    return once(tmp_path_factory, "finished", make)


@pytest.fixture
def work(finished: Path, tmp_path: Path) -> Path:
    """A copy of ``finished``, to change."""
    return Path(shutil.copytree(finished, tmp_path / "work"))


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work dir of the demo's recipe, with a smaller teacher and few epochs. Not to be changed: copy it."""

    def make(work: Path) -> None:
        small = ["teacher.model=resnet8", "teacher.epochs=4", "paraphraser.epochs=1", "student.epochs=4"]
        small.append("precision=32-true")  # so that all processors export nearly the same weights
        with pytest.MonkeyPatch.context() as patch:
            leave_out_charts(patch)
            with pytest.raises(SystemExit, match=r"^0$"):
                main(["run", "digits/resnet20-resnet8", *small, "--work-dir", str(work)])

    return once(tmp_path_factory, "digits", make)


@pytest.fixture(scope="session")
def exported_digits(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with that run as ``runs/resnet20-resnet8`` and an ExecuTorch file. Not to be changed: copy it.

    The file is that of the page on deployment, ``device/student.pte`` in 8 bits. What the command printed is in
    ``int8.txt``.
    """

    def make(folder: Path) -> None:
        shutil.copytree(digits_run, folder / "runs" / "resnet20-resnet8")
        (page,) = re.findall(r"^    factor-transfer (export .*)$", (ROOT / "docs" / "deploy.md").read_text(), re.M)
        printed, succeeds = io.StringIO(), pytest.raises(SystemExit, match=r"^0$")
        with contextlib.chdir(folder), contextlib.redirect_stdout(printed), succeeds:
            main([*page.split(), "--tolerance", "5"])  # of a student that was hardly trained
        (folder / "int8.txt").write_text(printed.getvalue())

    return once(tmp_path_factory, "exported", make)
