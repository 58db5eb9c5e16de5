"""Every public class and function has an example in its docstring, and the example runs."""

import doctest
import inspect

import pytest
import torch

import factor_transfer
from factor_transfer import taps

PUBLIC = {name: getattr(factor_transfer, name) for name in factor_transfer.__all__} | {"Taps": taps.Taps}


@pytest.mark.parametrize("name", PUBLIC)
def test_the_example_runs(name: str) -> None:
    torch.manual_seed(0)
    (example,) = doctest.DocTestFinder(recurse=False).find(PUBLIC[name], name, globs={})
    assert example.examples, f"{inspect.getsourcefile(PUBLIC[name])}: {name} has no example"
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example)
    assert not result.failed


def test_public_names_are_completed() -> None:
    assert set(factor_transfer.__all__) <= set(dir(factor_transfer))
