"""The optional libraries of the exporters and runtimes: whether they are installed, and capturing their output."""

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

# The extras of this package, and the libraries that they install.
EXTRAS = {"executorch": ("executorch", "torchao"), "onnx": ("onnx", "onnxscript", "onnxruntime")}


def need(extra: str) -> None:
    """Check that the libraries of an extra are installed, without importing them.

    Args:
        extra: the name of the extra, ``"executorch"`` or ``"onnx"``.

    Raises:
        InputError: if a library is not installed.
    """
    for library in EXTRAS[extra]:
        if not installed(library):
            raise InputError(f"{library} is not installed; {pip_install(extra)}")


class Captured:
    """Captured output.

    Attributes:
        text: the output on standard error, available after the ``with`` block of ``captured_output``.
    """

    text = ""


@contextmanager
def captured_output() -> Iterator[Captured]:
    """Capture the messages that libraries print for their own developers, during a ``with`` block.

    Exceptions are raised as usual. What the runtimes' C++ code prints about an error is then in ``Captured.text``.
    """
    captured, level, python_output = Captured(), logging.root.manager.disable, io.StringIO()
    sys.stderr.flush()
    # Libraries print to the standard error of the process and to Python's sys.stderr.
    with tempfile.TemporaryFile() as output, warnings.catch_warnings(), redirect_stderr(python_output):
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        error = os.dup(2)
        os.dup2(output.fileno(), 2)
        try:
            yield captured
        finally:
            os.dup2(error, 2)
            os.close(error)
            logging.disable(level)
            output.seek(0)
            captured.text = python_output.getvalue() + output.read().decode(errors="replace")
