"""Signals in quick succession, at whatever moment: one message, exit code 128 and the number, no traceback."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import Run, refused
from factor_transfer.cli import exit as ending
from factor_transfer.pipeline.stages import teacher as stages

SIGNALS = [signal.SIGINT, signal.SIGTERM]

# Sends its own process signals: when a module is first looked for, or in code that the test adds.
PROGRAM = """
import os, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)
def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)
class Finder:
    @staticmethod
    def find_spec(name, *_):
        if name == MODULE:
            sys.meta_path.remove(Finder)
            send(*NUMBERS)
sys.meta_path.insert(0, Finder)
from factor_transfer.cli import main
CODE
main()
"""


def program(*arguments: str | Path, module: str = "", numbers: list[int] | None = None, code: str = "") -> Any:
    text = (
        PROGRAM.replace("MODULE", repr(module))
        .replace("NUMBERS", repr([int(number) for number in numbers or ()]))
        .replace("CODE", code)
    )
    command = [sys.executable, "-c", text, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def stopped(result: Any, number: int) -> None:
    assert result.returncode == 128 + number, result.stderr
    assert result.stderr.startswith("Stopped: ")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("module", ["typer", "rich.console", "torch", "pydantic"])
def test_while_modules_are_imported(tiny: Path, module: str, number: signal.Signals) -> None:
    stopped(program("teacher", tiny, module=module, numbers=[number]), number)
    stopped(program("teacher", tiny, module=module, numbers=[number] * 3), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_one_that_python_would_forget(tiny: Path, number: signal.Signals) -> None:
    """In a destructor, whose exceptions are printed and ignored."""
    code = f"""
class Sends:
    def __del__(self):
        send({int(number)})
        for _ in range(100):
            pass
from factor_transfer.pipeline.stages import teacher
teacher.start_stage = lambda *_: Sends() and time.sleep(20)
"""
    stopped(program("teacher", tiny, code=code), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_one_while_the_first_is_on_its_way(tiny: Path, number: signal.Signals) -> None:
    code = f"""
def begin(*_):
    try:
        send({int(signal.SIGTERM)})
        time.sleep(20)
    finally:
        send({int(number)})
        time.sleep(20)
from factor_transfer.pipeline.stages import teacher
teacher.start_stage = begin
"""
    stopped(program("teacher", tiny, code=code), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_threads_that_wait_are_not_waited_for(tiny: Path, number: signal.Signals) -> None:
    code = f"""
threading.Thread(target=time.sleep, args=[40]).start()
from factor_transfer.pipeline.stages import teacher
teacher.start_stage = lambda *_: send({int(number)})
"""
    stopped(program("teacher", tiny, code=code), number)


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


def test_an_error_is_told_though_a_signal_comes(tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_a_launcher_that_says_too_little(
    tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    result = run("teacher", tiny)
    refused(result, message)
    assert result.err.count("Error: ") == 1
