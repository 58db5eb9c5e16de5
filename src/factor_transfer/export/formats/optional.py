"""The exporters and their runtimes: whether they are there, and what they say on the way."""

import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

from factor_transfer.errors import InputError
from factor_transfer.models.optional import installed, pip_install

# This package's extra, and the libraries that it brings.
EXTRAS = {"executorch": ("executorch", "torchao"), "onnx": ("onnx", "onnxscript", "onnxruntime")}


def need(extra: str) -> None:
    """See that an extra's libraries are installed; none is imported.

    Raises:
        InputError: one is not.
    """
    for library in EXTRAS[extra]:
        if not installed(library):
            raise InputError(f"{library} is not installed; {pip_install(extra)}")


class Captured:
    """What was said on standard error by code that is not Python's."""

    text = ""


@contextmanager
def captured_output() -> Iterator[Captured]:
    """While libraries work, keep what they print from the screen: notes on their own insides, for their developers.

    What they raise comes through, and what the runtimes' C++ says of an error is in ``Captured.text`` afterwards.
    """
    heard, level, said = Captured(), logging.root.manager.disable, io.StringIO()
    sys.stderr.flush()
    # Some of it goes to the process's standard error, some through Python's.
    with tempfile.TemporaryFile() as kept, warnings.catch_warnings(), redirect_stderr(said):
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        error = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield heard
        finally:
            os.dup2(error, 2)
            os.close(error)
            logging.disable(level)
            kept.seek(0)
            heard.text = said.getvalue() + kept.read().decode(errors="replace")
