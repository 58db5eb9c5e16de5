"""The state of a running training on disk: what a kill, at any moment, leaves to go on from.

It is read with ``weights_only=True``, which cannot run code.
"""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt

from factor_transfer.errors import InputError, first_line
from factor_transfer.files import open_regular, write_atomic

_MARK, _DIGEST = b"factor-transfer training\n", 32  # what a file begins with: this, and its SHA-256


@dataclass(frozen=True, kw_only=True)
class CheckpointInterval:
    """How often a running training writes its checkpoint: a kill loses no more than that.

    Attributes:
        epochs: a checkpoint is written after this many epochs, and after the last one.
        minutes: and after this many minutes, in the middle of an epoch.
    """

    epochs: Annotated[int, Ge(1)] = 1
    minutes: Annotated[float, Gt(0)] = 10.0


def save_training(path: Path, state: Mapping[str, Any]) -> None:
    """Write the state of a running training: tensors, numbers, strings, in dicts and lists.

    The file that was there is kept beside it, see ``latest_training``.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    content = buffer.getvalue()
    write_atomic(path, _MARK + hashlib.sha256(content).digest() + content, _previous(path))


def read_training(path: Path) -> dict[str, Any]:
    """Read what ``save_training`` wrote.

    Raises:
        InputError: missing, truncated or corrupted file.
    """
    try:
        with open_regular(path) as file:
            whole = file.read()
        digest, content = whole[len(_MARK) : len(_MARK) + _DIGEST], whole[len(_MARK) + _DIGEST :]
        if not whole.startswith(_MARK) or hashlib.sha256(content).digest() != digest:
            raise ValueError("its SHA-256 is not the one that it was written with")
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return state
    except Exception as error:
        raise InputError(
            f"checkpoint {path} is damaged: {first_line(error)}\nRemove it, or add --fresh, to start the stage anew"
        ) from error


def is_under_way(path: Path) -> bool:
    """Whether a training has left a checkpoint at ``path``, or the one before it."""
    return path.exists() or _previous(path).exists()


def latest_training(path: Path) -> tuple[dict[str, Any], str]:
    """Read the last state of a training that is whole: of two, if the later one is damaged, the one before.

    Returns:
        The state; and what is to be said of a damaged file, if there is one.

    Raises:
        InputError: neither is whole.
    """
    previous = _previous(path)
    if not path.exists() and previous.exists():  # a kill came between two names
        return read_training(previous), ""
    try:
        return read_training(path), ""
    except InputError as error:
        if not previous.exists():
            raise
        state = read_training(previous)
        return state, f"{str(error).splitlines()[0]}; the one before it is used, {previous}"


def remove_training(path: Path) -> None:
    """Remove the states of a training that is finished."""
    for file in (path, _previous(path)):
        file.unlink(missing_ok=True)


def _previous(path: Path) -> Path:
    return path.with_name(f"previous-{path.name}")
