"""Signals in quick succession, at whatever moment: one message, exit code 128 and the number, no traceback."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import TINY, Run, refused
from factor_transfer.cli import exit as ending
from factor_transfer.pipeline.stages import teacher as stages

SIGNALS = [signal.SIGINT, signal.SIGTERM]

# Sends its own process signals when a module is first looked for.
WHILE_IMPORTING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Finder:
    @staticmethod
    def find_spec(name, *_):
        if name == MODULE:
            sys.meta_path.remove(Finder)
            for number in NUMBERS:
                os.kill(os.getpid(), number)
sys.meta_path.insert(0, Finder)
from factor_transfer.cli import main
main()
"""

# Each case in a process of its own, all of which are forks of one that has imported PyTorch.
CASES = """
import json, os, signal, sys, threading, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)
def send(number):
    os.kill(os.getpid(), number)
from factor_transfer.cli import main
from factor_transfer.pipeline.stages import teacher
outcomes = {}
for name, code in json.loads(Path("cases.json").read_text()).items():
    child = os.fork()
    if not child:
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), 2)
        exec(code, globals())
        sys.argv[1:] = ["teacher", "tiny.toml"]  # main without arguments ends the process
        main()
    outcomes[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), Path(name).read_text()
Path("outcomes.json").write_text(json.dumps(outcomes))
"""


def stopped(code: int, errors: str, number: int) -> None:
    assert code == 128 + number, errors
    assert errors.startswith("Stopped: ")
    assert errors.splitlines()[1:] == ["The same command resumes from there"] * ("saved" in errors)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("module", ["typer", "rich.console", "torch", "pydantic"])
def test_while_modules_are_imported(tiny: Path, module: str, number: signal.Signals) -> None:
    numbers = [int(number)] * (3 if module in ("rich.console", "torch") else 1)
    text = WHILE_IMPORTING.replace("MODULE", repr(module)).replace("NUMBERS", repr(numbers))
    command = [sys.executable, "-c", text, "teacher", str(tiny)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    stopped(result.returncode, result.stderr, number)


MOMENTS = {
    # Exceptions that are raised in a destructor are printed and ignored by Python.
    "in a destructor": """
class Sends:
    def __del__(self):
        send(NUMBER)
        for _ in range(100):
            pass
teacher.start_stage = lambda *_: Sends() and time.sleep(600)
""",
    "while the first one is handled": f"""
def start(*_):
    try:
        send({int(signal.SIGTERM)})
        time.sleep(600)
    finally:
        send(NUMBER)
        time.sleep(600)
teacher.start_stage = start
""",
    "beside a thread that waits": """
threading.Thread(target=time.sleep, args=[600]).start()
teacher.start_stage = lambda *_: send(NUMBER)
""",
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """The exit code and the message of the command, by moment and signal."""
    folder = tmp_path_factory.mktemp("signals")
    (folder / "tiny.toml").write_text(TINY)
    cases = {
        f"{moment}, {number.name}": code.replace("NUMBER", str(int(number)))
        for moment, code in MOMENTS.items()
        for number in SIGNALS
    }
    (folder / "cases.json").write_text(json.dumps(cases))
    subprocess.run(
        [sys.executable, "-c", CASES], cwd=folder, check=True, timeout=300
    )  # where one waits, it is too late
    found: dict[str, list[Any]] = json.loads((folder / "outcomes.json").read_text())
    return found


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_at_an_awkward_moment(moment: str, number: signal.Signals, outcomes: dict[str, list[Any]]) -> None:
    code, errors = outcomes[f"{moment}, {number.name}"]
    stopped(code, errors, number)


@pytest.mark.parametrize("late", SIGNALS)
@pytest.mark.parametrize("number", SIGNALS)
def test_while_the_message_is_printed_further_ones_are_ignored(
    tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, late: signal.Signals
) -> None:
    show = ending.Console.print

    def disturbed(self: Any, *words: Any, **how: Any) -> None:
        if self.stderr:
            signal.raise_signal(late)
        show(self, *words, **how)
        if self.stderr:
            signal.raise_signal(late)

    monkeypatch.setattr(stages, "start_stage", lambda *_: signal.raise_signal(number))
    before = [signal.getsignal(each) for each in SIGNALS]
    with monkeypatch.context() as patch:
        patch.setattr(ending.Console, "print", disturbed)
        result = run("teacher", tiny, "--debug")
    assert result.code == 128 + number
    assert result.err.count("Stopped: ") == 1
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_an_error_is_reported_even_if_a_signal_arrives(tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    say = ending._message

    def disturbed(error: BaseException) -> str | None:
        signal.raise_signal(signal.SIGTERM)
        return say(error)

    monkeypatch.setattr(ending, "_message", disturbed)
    refused(run("teacher", "nowhere.toml"), "cannot read recipe nowhere.toml")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"SLURM_NTASKS": "2"}, "srun needs --ntasks-per-node in addition to --ntasks"),
        ({"SLURM_NTASKS": "two"}, "must set the environment variable SLURM_NTASKS to a number, but it is 'two'"),
        ({"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2(x3)"}, "SLURM_PROCID|SLURM_NTASKS_PER_NODE"),
        (
            {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "x"},
            "SLURM_PROCID to a number, but it is 'x'",
        ),
        ({"TORCHELASTIC_RUN_ID": "a", "RANK": "0"}, "WORLD_SIZE to a number, but it is None"),
    ],
)
def test_a_launcher_with_missing_variables(
    tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    result = run("teacher", tiny)
    refused(result, message)
    assert result.err.count("Error: ") == 1
