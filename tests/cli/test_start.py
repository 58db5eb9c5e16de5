"""What a command imports before it can say that something is wrong: names, not seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

# Slow to import, and needed by a training alone.
HEAVY = {"torch", "lightning_fabric", "torchmetrics", "scipy", "sklearn", "matplotlib", "jinja2", "torch._dynamo"}
SCRIPT = """
import json, sys
try:
    {0}
finally:
    print(json.dumps([name for name in sys.modules]))
"""


def imported(statement: str) -> set[str]:
    """The heavy modules that a statement imports in a new process."""
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(statement)], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 2), done.stderr
    return HEAVY & set(json.loads(done.stdout.splitlines()[-1]))


def command(*words: str) -> str:
    return f"from factor_transfer.cli import main; main({list(words)!r})"


def test_the_package_alone_imports_nothing_heavy() -> None:
    assert imported("import factor_transfer") == set()


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--nonsense"],
        ["run", "digits/resnet20-resnet9"],
        ["compare", "broken.toml"],
        ["train", "digits/resnet20-resnet8", "x"],
        ["run", "digits/resnet20-resnet8", "student.epoch=3"],
        ["run", "digits/resnet20-resnet8", "student.model=resnet21"],
        ["show", "schema"],
    ],
)
def test_what_has_nothing_to_do_with_networks_does_not_wait_for_pytorch(words: list[str]) -> None:
    Path("broken.toml").write_text("[data\n")
    assert imported(command(*words)) == set()


def test_a_wrong_setting_waits_for_pytorch_alone() -> None:
    names = ["run", "teacher", "compare", "check", "test"]
    calls = [
        [name, "digits/resnet20-resnet8", *(["weights.pth"] if name == "test" else []), "student.epochs=0"]
        for name in names
    ]
    # All in one process, since PyTorch takes two seconds each time.
    code = f"""
    from factor_transfer.cli import main
    codes = []
    for words in {calls!r}:
        try:
            main(words)
        except SystemExit as leave:
            codes.append(leave.code)
    assert codes == {[2] * len(calls)}, codes"""
    assert imported(code.strip()) == {"torch"}


def test_a_training_waits_for_no_more_than_it_needs() -> None:
    """lightning-fabric would import torchmetrics, and with it SciPy and Matplotlib, where that is installed."""
    code = "from factor_transfer.distributed.fabric import open_fabric; open_fabric('cpu', '32-true')"
    assert imported(code) == {"torch", "torch._dynamo", "lightning_fabric"}


def test_lists_wait_for_no_more_than_they_show() -> None:
    """One process each for those without and those with networks, since PyTorch takes more than a second."""

    def show(*lists: list[str]) -> str:
        return f"""
    from factor_transfer.cli import main
    for words in {lists!r}:
        main(["show", *words])"""

    assert imported(show(["recipes"], ["presets"], ["zoo"]).strip()) == set()
    assert imported(show(["methods"], ["models"], ["taps", "resnet8"]).strip()) == {"torch"}


@pytest.mark.parametrize(("given", "expected"), [(None, "passive"), ("active", "active")])
def test_threads_wait_without_keeping_a_processor_busy(
    given: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY")
    if given is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    monkeypatch.setenv("OMP_DISPLAY_ENV", "true")  # OpenMP then prints what it has read
    done = subprocess.run(
        [sys.executable, "-c", command("show", "methods")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"OMP_WAIT_POLICY = '{expected.upper()}'" in done.stderr
