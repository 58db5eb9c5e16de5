"""Reading the pickles that CIFAR's Python archives hold, and nothing else.

A pickle is a program: loaded the usual way it may call any function there is. Here every name it asks
for is looked up in a table of four stand-ins, which only keep what they are given, so that neither
the system nor numpy's own unpickling code (which trusts its input) is within its reach.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from factor_transfer.errors import InputError


class _PickledType:
    """Stands in for ``numpy.dtype``."""

    code: object = None

    def __init__(self, code: object = None, *flags: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Byte order and fields: nothing that a one-byte number has."""


class _PickledArray:
    """Stands in for ``numpy.ndarray`` and for the function that makes an empty one to be filled."""

    values: np.ndarray | None = None

    def __init__(self, *_: object) -> None:
        """The arguments describe the empty array; the state that follows says all of it again."""

    def __setstate__(self, state: tuple[int, tuple[int, ...], _PickledType, bool, bytes]) -> None:
        _, shape, dtype, column_major, data = state
        if dtype.code not in ("u1", b"u1"):
            raise ValueError(f"holds an array of {dtype.code!r}, expected 'u1' (uint8)")
        self.values = np.frombuffer(data, np.uint8).reshape(shape, order="F" if column_major else "C")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledType,
    ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
    ("numpy._core.multiarray", "_reconstruct"): _PickledArray,  # its name since numpy 2
    # Protocol 2 has no bytes: Python 3 writes them as text and asks for this to turn them back. A file
    # saved again by Python 3 has it in every array; from text it can make bytes only.
    ("_codecs", "encode"): str.encode,
}


# The unpickler written in Python, for its memo is a dict. The one in C, up to Python 3.14, allocates and
# writes as many slots as the largest index asks for: one damaged byte could take tens of gigabytes.
class _Unpickler(pickle._Unpickler):
    def __init__(self, file: io.BytesIO, path: Path) -> None:
        super().__init__(file, encoding="bytes")  # Python 2's str: the pixels are of that type
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise InputError(
                f"{self._path}: refused, the pickle asks for {module}.{name}, which no CIFAR file holds"
            ) from None


def load_pickled_dict(path: Path) -> dict[str, object]:
    """Read a pickled dict of plain values and uint8 arrays.

    Args:
        path: the file, of any pickle protocol up to 4, written by Python 2 or 3.

    Returns:
        The dict. Keys are text; arrays on its first level are numpy arrays, read-only; text that Python 2
        wrote is bytes.

    Raises:
        InputError: if the file cannot be read, is damaged, goes on behind its end, or asks for anything
            beyond what CIFAR's files hold.
    """
    try:
        file = io.BytesIO(path.read_bytes())
        content = _Unpickler(file, path).load()
        if file.read(1):
            raise ValueError("there are bytes behind the end of the pickle")
        if not isinstance(content, dict):
            raise ValueError(f"expected a dict, found a {type(content).__name__}")
        return {
            key.decode("ascii") if isinstance(key, bytes) else str(key): (
                value.values if isinstance(value, _PickledArray) else value
            )
            for key, value in content.items()
        }
    except InputError:
        raise
    # Damaged bytes run as a program of another kind: nearly any exception can come of it.
    except Exception as error:
        raise InputError(f"{path}: cannot be read as a pickled CIFAR file: {type(error).__name__}: {error}") from error
