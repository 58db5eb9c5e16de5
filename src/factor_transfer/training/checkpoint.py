"""The checkpoint of a running training, from which it can resume after a kill at any moment.

Checkpoints are read with ``weights_only=True``, which cannot run code.
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

_MAGIC, _DIGEST_BYTES = (
    b"factor-transfer training\n",
    32,
)  # a file is the magic, the SHA-256 of its content, the content


@dataclass(frozen=True, kw_only=True)
class CheckpointInterval:
    """The interval between the checkpoints of a running training, which is the most that a kill can lose.

    Attributes:
        epochs: the number of epochs after which a checkpoint is written. The last epoch always ends with one.
        minutes: the number of minutes after which a checkpoint is written, even within an epoch.
    """

    epochs: Annotated[int, Ge(1)] = 1
    minutes: Annotated[float, Gt(0)] = 10.0


def save_training(path: Path, state: Mapping[str, Any]) -> None:
    """Write the state of a running training: tensors, numbers and strings, in dicts and lists.

    The previous checkpoint is kept beside the new one, see ``latest_training``.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    content = buffer.getvalue()
    write_atomic(path, _MAGIC + hashlib.sha256(content).digest() + content, _previous(path))


def read_training(path: Path) -> dict[str, Any]:
    """Read a state that ``save_training`` wrote.

    Raises:
        InputError: if the file is missing, truncated or corrupted.
    """
    try:
        with open_regular(path) as file:
            whole = file.read()
        start = len(_MAGIC) + _DIGEST_BYTES
        digest, content = whole[len(_MAGIC) : start], whole[start:]
        if not whole.startswith(_MAGIC) or hashlib.sha256(content).digest() != digest:
            raise ValueError("its SHA-256 does not match its content")
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return state
    except Exception as error:
        raise InputError(
            f"checkpoint {path} is damaged: {first_line(error)}\nRemove it, or add --fresh, to restart the stage"
        ) from error


def is_under_way(path: Path) -> bool:
    """Whether there is a checkpoint at ``path``, or its previous one."""
    return path.exists() or _previous(path).exists()


def latest_training(path: Path) -> tuple[dict[str, Any], str]:
    """Read the latest undamaged checkpoint: the one at ``path``, or else the previous one.

    Returns:
        The state, and a message about a damaged checkpoint or an empty string.

    Raises:
        InputError: if neither can be read.
    """
    previous = _previous(path)
    if not path.exists() and previous.exists():  # a kill between the two renames of ``write_atomic``
        return read_training(previous), ""
    try:
        return read_training(path), ""
    except InputError as error:
        if not previous.exists():
            raise
        state = read_training(previous)
        return state, f"{str(error).splitlines()[0]}; the previous checkpoint is used: {previous}"


def remove_training(path: Path) -> None:
    """Remove the checkpoints of a finished training."""
    for file in (path, _previous(path)):
        file.unlink(missing_ok=True)


def _previous(path: Path) -> Path:
    return path.with_name(f"previous-{path.name}")
