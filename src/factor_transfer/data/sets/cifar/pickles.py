"""A safe reader for the pickles in CIFAR's Python archives, and for nothing else.

A pickle is a program: ``pickle.load`` lets it call any function. Here, every name in the pickle is looked up in a table
of substitutes that only store their arguments, so that it can reach neither the system nor NumPy's unpickling code,
which trusts its input. Only the opcodes that occur in CIFAR's files and copies of them are executed. Time and memory
are proportional to the size of the file.

torchvision's reader is not used because it calls ``pickle.load``. Supporting only the binary archives, which are not
pickles, would not do: most copies of CIFAR are in the Python layout, downloaded by torchvision or Keras.
"""

import io
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from factor_transfer.errors import InputError, first_line
from factor_transfer.files import open_regular


class _PickledType:
    """The substitute for ``numpy.dtype``."""

    code: object = None

    def __init__(self, code: object = None, *flags: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Ignore the byte order and the fields, which a one-byte number does not have."""


class _PickledArray:
    """The substitute for ``numpy.ndarray``, and for the function that creates an empty array."""

    values: np.ndarray | None = None

    def __init__(self, *_: object) -> None:
        """Ignore the description of the empty array, which the state that follows repeats."""

    def __setstate__(self, state: tuple[int, tuple[int, ...], _PickledType, bool, bytes]) -> None:
        _, shape, dtype, column_major, data = state
        if dtype.code not in ("u1", b"u1"):
            # The code may be any object, such as nested tuples whose representation would not fit into memory.
            found = repr(dtype.code) if isinstance(dtype.code, str | bytes) else type(dtype.code).__name__
            raise ValueError(f"holds an array of {found[:20]}, expected 'u1' (uint8)")
        self.values = np.frombuffer(data, np.uint8).reshape(shape, order="F" if column_major else "C")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledType,
    ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
    ("numpy._core.multiarray", "_reconstruct"): _PickledArray,  # its name since NumPy 2
}
# Protocol 2 has no bytes: Python 3 writes them as text, with a call of this function to convert them back. Files that
# were saved again by Python 3 contain it in every array.
_ENCODE = ("_codecs", "encode")

# Opcodes for plain values, lists, tuples and dicts, the memo, and objects of the table above. Sets are excluded because
# hashing their elements can take forever, and protocol 5 because it allocates buffers of any size that it is given.
_OPCODES = """
    PROTO FRAME MARK STOP GLOBAL STACK_GLOBAL REDUCE BUILD
    NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
    BINBYTES SHORT_BINBYTES BINBYTES8
    EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS
    PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET
"""
_LONGEST_KEY = 1000  # the longest key of a dict, in characters
_CODES = {opcode.name: ord(opcode.code) for opcode in pickletools.opcodes}
_NAMES = {code: name for name, code in _CODES.items()}


class _Dispatch(dict[int, Callable[[Any], None]]):
    """The functions that execute the opcodes."""

    def __missing__(self, code: int) -> Callable[[Any], None]:
        raise ValueError(f"it has the opcode {_NAMES.get(code, code)}, which no CIFAR file contains")


class _Bytes(io.BytesIO):
    """The bytes of a file; reading more than are left is an error."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.left = len(content)

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= self.left:
            raise ValueError(f"it is truncated or damaged: expected {size:,} more bytes, but {self.left:,} are left")
        self.left -= size
        return super().read(size)

    def readline(self, size: int | None = -1) -> bytes:
        line = super().readline(size)
        self.left -= len(line)
        return line


# The unpickler written in Python, because its memo is a dict. The one in C, up to Python 3.14, allocates and writes as
# many slots as the largest index requires: one damaged byte could take tens of gigabytes.
class _Unpickler(pickle._Unpickler):
    dispatch = _Dispatch({_CODES[name]: pickle._Unpickler.dispatch[_CODES[name]] for name in _OPCODES.split()})

    def __init__(self, file: _Bytes, path: Path) -> None:
        super().__init__(file, encoding="bytes")  # for Python 2's str, which the pixels are stored as
        self._path = path
        self._encodable = file.left  # the number of characters that may still be encoded: each is in the file once

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == _ENCODE:
            return self._encode
        try:
            return _ALLOWED[module, name]
        except KeyError:
            requested = f"{module}.{name}"
            requested = requested if requested.isprintable() and len(requested) <= 80 else repr(requested)[:80]
            raise InputError(
                f"{self._path}: refused, the pickle refers to {requested}, which no CIFAR file contains"
            ) from None

    def _encode(self, text: str, encoding: str) -> bytes:
        """Convert text of the characters 0..255 to bytes; ``latin1`` is the only encoding that Python 3 writes."""
        if not isinstance(text, str) or encoding != "latin1":
            raise ValueError("it uses an encoding other than latin1")
        self._encodable -= len(text)
        if self._encodable < 0:
            raise ValueError("it encodes more text than the file contains")
        return text.encode("latin1")

    def _set_items(self, items: list[Any]) -> None:
        """Fill the dict on top of the stack."""
        target = self.stack[-1]  # type: ignore[attr-defined]
        if not isinstance(target, dict):
            raise ValueError(f"it sets items of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Nested tuples, each twice in the next, take few bytes in the file and forever to hash.
            if not isinstance(key, str | bytes) or len(key) > _LONGEST_KEY:
                raise ValueError(f"it has a dict with a {type(key).__name__} as a key, expected a short string")
            target[key] = value

    def _load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()  # type: ignore[attr-defined]
        self._set_items([key, value])

    def _load_setitems(self) -> None:
        self._set_items(self.pop_mark())  # type: ignore[attr-defined]

    def _load_dict(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        self.append({})  # type: ignore[attr-defined]
        self._set_items(items)

    def _load_build(self) -> None:
        if not isinstance(self.stack[-2], _PickledType | _PickledArray):  # type: ignore[attr-defined]
            raise ValueError("it sets the state of an object that has none")
        pickle._Unpickler.dispatch[_CODES["BUILD"]](self)  # type: ignore[arg-type]

    dispatch[_CODES["BUILD"]] = _load_build
    dispatch[_CODES["SETITEM"]] = _load_setitem
    dispatch[_CODES["SETITEMS"]] = _load_setitems
    dispatch[_CODES["DICT"]] = _load_dict


def load_pickled_dict(path: Path) -> dict[str, object]:
    """Read a pickled dict of plain values and uint8 arrays.

    Args:
        path: the file, in any pickle protocol up to 4, written by Python 2 or 3.

    Returns:
        The dict, with strings as keys. Arrays among its values are read-only NumPy arrays; strings that Python 2 wrote
        are bytes.

    Raises:
        InputError: if the file cannot be read, is damaged, has further data after the pickle, or contains anything
            that CIFAR's files do not.
    """
    try:
        with open_regular(path) as opened:
            file = _Bytes(opened.read())
        content = _Unpickler(file, path).load()
        if file.left:
            raise ValueError("there are bytes after the end of the pickle")
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
    # A damaged file is executed as another program, so nearly any exception is possible.
    except Exception as error:
        raise InputError(
            f"{path}: cannot be read as a pickled CIFAR file: {type(error).__name__}: {first_line(error)}"
        ) from error
