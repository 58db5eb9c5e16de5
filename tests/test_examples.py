"""Every public class and function has an example in its docstring, and the example runs."""

import doctest
import inspect
from pathlib import Path

import pytest
import torch

import factor_transfer
from factor_transfer import taps
from factor_transfer.deploy.predict import predict

PUBLIC = {name: getattr(factor_transfer, name) for name in factor_transfer.__all__}
PUBLIC |= {"Taps": taps.Taps, "predict": predict}


@pytest.mark.parametrize("name", PUBLIC)
def test_the_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # for examples that write files
    torch.manual_seed(0)
    (example,) = doctest.DocTestFinder(recurse=False).find(PUBLIC[name], name, globs={})
    assert example.examples, f"{inspect.getsourcefile(PUBLIC[name])}: {name} has no example"
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example)
    assert not result.failed


def test_public_names_are_completed() -> None:
    assert set(factor_transfer.__all__) <= set(dir(factor_transfer))
