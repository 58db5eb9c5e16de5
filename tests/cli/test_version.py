import re
from importlib import metadata
from importlib.metadata import PackageNotFoundError

import pytest

import factor_transfer
from conftest import Run
from factor_transfer import versions as module


def test_versions_are_shown(run: Run) -> None:
    done = run("--version")
    assert done.code == 0
    assert re.fullmatch(r"factor-transfer \d+\.\d+\.\d+, torch \d\S+, Python 3\.\d+\.\d+\n", done.out)
    assert f"factor-transfer {factor_transfer.__version__}," in done.out


def test_help_has_a_short_name(run: Run) -> None:
    for words in ((), ("run",), ("export",)):
        short, long = run(*words, "-h"), run(*words, "--help")
        assert short.code == long.code == 0
        assert short.out == long.out


def test_a_checkout_that_is_not_installed_has_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "factor-transfer":
            raise PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr(metadata, "version", version)
    assert module.versions("factor-transfer", "torch") == {
        "factor-transfer": factor_transfer.__version__,
        "torch": "1.2.3",
    }
