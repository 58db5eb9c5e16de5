"""Reading the pickles that CIFAR's Python archives hold, and nothing else.

A pickle is a program: loaded the usual way it may call any function there is. Here every name it asks
for is looked up in a table of stand-ins, which only keep what they are given, so that neither
the system nor numpy's own unpickling code (which trusts its input) is within its reach. Of the opcodes,
those are run that CIFAR's files and copies of them are made of. What they cost, in time and in memory,
grows as the file does.

Why it is not torchvision's reader: that loads the pickles the usual way. And the binary archives, which need no
reader, are not enough: most people's copy of CIFAR is the Python one, fetched by torchvision or Keras.
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
            # The code may be anything, such as tuples within tuples that no memory would hold when written out.
            found = repr(dtype.code) if isinstance(dtype.code, str | bytes) else type(dtype.code).__name__
            raise ValueError(f"holds an array of {found[:20]}, expected 'u1' (uint8)")
        self.values = np.frombuffer(data, np.uint8).reshape(shape, order="F" if column_major else "C")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledType,
    ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
    ("numpy._core.multiarray", "_reconstruct"): _PickledArray,  # its name since numpy 2
}
# Protocol 2 has no bytes: Python 3 writes them as text and asks for this to turn them back. A file
# saved again by Python 3 has it in every array.
_ENCODE = ("_codecs", "encode")

# Plain values, lists, tuples and dicts, the memo, and the making of an object of the table above. There are no sets,
# for hashing what is in them can take for ever, and nothing of protocol 5, whose buffers are as large as they say.
_OPCODES = """
    PROTO FRAME MARK STOP GLOBAL STACK_GLOBAL REDUCE BUILD
    NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
    BINBYTES SHORT_BINBYTES BINBYTES8
    EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS
    PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET
"""
_LONGEST_KEY = 1000  # characters
_CODES = {opcode.name: ord(opcode.code) for opcode in pickletools.opcodes}
_NAMES = {code: name for name, code in _CODES.items()}


class _Dispatch(dict[int, Callable[[Any], None]]):
    """What each opcode does."""

    def __missing__(self, code: int) -> Callable[[Any], None]:
        raise ValueError(f"it has the opcode {_NAMES.get(code, code)}, which no CIFAR file holds")


class _Bytes(io.BytesIO):
    """A file's bytes, of which no more can be asked for than are left."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.left = len(content)

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= self.left:
            raise ValueError(f"it is cut off, or damaged: {size:,} bytes are to follow, {self.left:,} are left")
        self.left -= size
        return super().read(size)

    def readline(self, size: int | None = -1) -> bytes:
        line = super().readline(size)
        self.left -= len(line)
        return line


# The unpickler written in Python, for its memo is a dict. The one in C, up to Python 3.14, allocates and
# writes as many slots as the largest index asks for: one damaged byte could take tens of gigabytes.
class _Unpickler(pickle._Unpickler):
    dispatch = _Dispatch({_CODES[name]: pickle._Unpickler.dispatch[_CODES[name]] for name in _OPCODES.split()})

    def __init__(self, file: _Bytes, path: Path) -> None:
        super().__init__(file, encoding="bytes")  # Python 2's str: the pixels are of that type
        self._path = path
        self._encodable = file.left  # characters; a text is in the file once, and is encoded once

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == _ENCODE:
            return self._encode
        try:
            return _ALLOWED[module, name]
        except KeyError:
            asked = f"{module}.{name}"
            asked = asked if asked.isprintable() and len(asked) <= 80 else repr(asked)[:80]
            raise InputError(f"{self._path}: refused, the pickle asks for {asked}, which no CIFAR file holds") from None

    def _encode(self, text: str, encoding: str) -> bytes:
        """Text of the characters 0..255 as bytes; what Python 3 asks for is ``latin1``, and nothing else is done."""
        if not isinstance(text, str) or encoding != "latin1":
            raise ValueError("it asks for an encoding other than latin1")
        self._encodable -= len(text)
        if self._encodable < 0:
            raise ValueError("it encodes more text than there is in the file")
        return text.encode("latin1")

    def _set_items(self, items: list[Any]) -> None:
        """Fill the dict on top of the stack."""
        target = self.stack[-1]  # type: ignore[attr-defined]
        if not isinstance(target, dict):
            raise ValueError(f"it sets items of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Tuples within tuples, each twice in the next, are short to write and take for ever to hash.
            if not isinstance(key, str | bytes) or len(key) > _LONGEST_KEY:
                raise ValueError(f"it has a dict with a {type(key).__name__} as a key, expected a short text")
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
            raise ValueError("it gives a state to what has none")
        pickle._Unpickler.dispatch[_CODES["BUILD"]](self)  # type: ignore[arg-type]

    dispatch[_CODES["BUILD"]] = _load_build
    dispatch[_CODES["SETITEM"]] = _load_setitem
    dispatch[_CODES["SETITEMS"]] = _load_setitems
    dispatch[_CODES["DICT"]] = _load_dict


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
        with open_regular(path) as opened:
            file = _Bytes(opened.read())
        content = _Unpickler(file, path).load()
        if file.left:
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
        raise InputError(
            f"{path}: cannot be read as a pickled CIFAR file: {type(error).__name__}: {first_line(error)}"
        ) from error
