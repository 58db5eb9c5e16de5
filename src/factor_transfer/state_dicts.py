"""State dicts: the files that contain them, and loading them into networks.

Weights are read from safetensors, or from PyTorch files with ``weights_only=True``. Neither can run code.
"""

import os
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self, TypeGuard

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from factor_transfer.errors import InputError, first_line
from factor_transfer.files import open_regular, write_atomic

State = dict[str, Tensor]


def save_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a state dict as safetensors."""
    content = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    write_atomic(path, safetensors.torch.save(content))


def read_weights(path: Path) -> State:
    """Read a state dict from safetensors, or from a PyTorch file that contains only tensors.

    Raises:
        InputError: if the file is missing, truncated or corrupted, or contains anything else.
    """
    content = read_file(path)
    if not is_state(content):
        raise InputError(f"weights {path} must be a state dict, which is a dict from parameter names to tensors")
    return content


def is_state(content: Any) -> TypeGuard[State]:
    """Whether an object is a dict from names to tensors."""
    return isinstance(content, dict) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    )


class _Inert:
    """A placeholder for an object in a file that is not needed. It ignores all of its arguments and its state."""

    def __new__(cls, *args: Any) -> Self:
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def read_file(path: Path, inert: Iterable[str] = ()) -> Any:
    """Read a file of weights, which may also contain numbers and strings, in dicts and lists.

    Args:
        path: the path of a safetensors or PyTorch file.
        inert: the full names of types and functions that the file may refer to, such as ``numpy.dtype``. They are not
            called, and the objects that they would create are replaced by placeholders.

    Raises:
        InputError: if the file is missing, truncated or corrupted, or refers to other code.
    """
    try:
        with open_regular(path) as file:
            if path.suffix == ".safetensors":
                return safetensors.torch.load(file.read())
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    # PyTorch writes without compression but reads compressed archives, which could fill the memory.
                    if sum(entry.file_size for entry in archive.infolist()) > os.fstat(file.fileno()).st_size:
                        raise ValueError("its content is larger than the file")
            file.seek(0)
            with torch.serialization.safe_globals([(_Inert, name) for name in inert]):
                return torch.load(file, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read weights {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise InputError(f"weights {path} are damaged: {error}") from error
    except Exception as error:  # damaged zip archives and pickles raise many kinds of exceptions
        raise InputError(f"weights {path} are damaged, or contain more than tensors: {_reason(error)}") from error


def load_into(model: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
    """Load a state dict into a model, strictly.

    Args:
        model: the model.
        state: the state dict.
        source: the path of the file that contains the weights, or words such as ``"of the student"``, for messages.

    Raises:
        InputError: if tensors are missing, unknown or of another shape or kind of number; if weights are not finite in
            the model's precision; or if a running variance is negative. The message names the tensors.
    """
    check_layers(model, state, source)
    expected = model.state_dict()
    # In the model's precision, because large float64 weights become infinite in float32.
    converted = {key: state[key].to(value.dtype) for key, value in expected.items()}
    _refuse(source, "are not finite", [key for key, value in converted.items() if not value.isfinite().all()])
    variances = [key for key in converted if key.rpartition(".")[2] == "running_var"]
    _refuse(source, "have variances below zero", [key for key in variances if (converted[key] < 0).any()])
    model.load_state_dict(converted)


def check_layers(model: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
    """Check that a state dict has the tensors of a model, without a check of their values; see ``load_into``.

    Raises:
        InputError: if tensors are missing, unknown or of another shape or kind of number. The message names them.
    """
    expected = model.state_dict()
    faults = [f"missing: {key}" for key in expected if key not in state]
    faults += [f"not in the model: {key}" for key in state if key not in expected]
    faults += [fault for key, value in expected.items() if key in state and (fault := _misfit(key, state[key], value))]
    if faults:
        listed = "\n  ".join(faults[:8])
        more = f"\n  … and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise InputError(f"weights {source} do not fit {type(model).__name__}:\n  {listed}{more}")


def _misfit(key: str, given: Tensor, expected: Tensor) -> str:
    """The reason why a tensor of a file cannot replace one of a model; empty if it can."""
    if given.layout != torch.strided or given.is_quantized or given.device.type == "meta":
        return f"{key}: not a dense tensor"
    if given.shape != expected.shape:
        return f"{key}: shape {tuple(given.shape)} in the weights, {tuple(expected.shape)} in the model"
    kinds = [value.is_complex() + 2 * value.is_floating_point() for value in (given, expected)]
    integer = expected.dtype != torch.bool and not kinds[1]  # old files store batch counters in other types
    if kinds[0] == kinds[1] or (integer and torch.equal(given.to(expected.dtype).to(given.dtype), given)):
        return ""
    return f"{key}: {given.dtype} in the weights, {expected.dtype} in the model"


def _refuse(source: object, what: str, keys: list[str]) -> None:
    if keys:
        raise InputError(f"weights {source} {what}: {', '.join(keys[:3])}{', …' if keys[3:] else ''}")


def _reason(error: Exception) -> str:
    """The reason why PyTorch refused a file, without PyTorch's advice to run the code in it."""
    found = re.search(r"GLOBAL (\S+) w", str(error))
    return f"it refers to {found[1]}; save only the state dict" if found else first_line(error)
