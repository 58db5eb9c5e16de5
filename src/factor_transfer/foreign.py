"""Weights from elsewhere: the same networks, whose layers have other names."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from factor_transfer.checkpoint import State, read_file
from factor_transfer.errors import InputError

# What a file of several things calls the weights among them.
_CONTAINERS = ("model", "state_dict", "net")


def _paraphraser(step: int) -> list[tuple[str, str]]:
    """The authors' conv0 … deconv2 and, where there are any, bn0 … bn2_de, in stacks of ``step`` modules a layer."""
    names = []
    for layer in range(3):
        names += [(rf"^conv{layer}\.", f"encoder.{layer * step}."), (rf"^deconv{layer}\.", f"decoder.{layer * step}.")]
        if step == 3:
            names += [(rf"^bn{layer}\.", f"encoder.{layer * step + 1}.")]
            names += [(rf"^bn{layer}_de\.", f"decoder.{layer * step + 1}.")]
    return names


# Whose file it is -> what of a layer's name becomes what of ours. RepDistiller, timm and torchvision name the layers of
# their residual networks as we do.
_NAMES: dict[str, Sequence[tuple[str, str]]] = {
    "our own": (),
    "the authors' code": ((r"\.shortcut\.", ".downsample."), (r"^linear\.", "fc.")),
    "mmpretrain": ((r"^backbone\.", ""), (r"^head\.fc\.", "fc.")),
    "the authors' paraphraser": _paraphraser(2),
    "the authors' paraphraser with batch norm": _paraphraser(3),
}


def read_foreign(path: Path) -> State:
    """Read weights: of ours, or a file that holds them beside other things, maybe from several devices.

    Args:
        path: safetensors, or a PyTorch file: a state dict, or ``{"model": …}``, ``{"state_dict": …}`` or
            ``{"net": …}`` with anything beside. A prefix ``module.`` of all names (``DataParallel``) is taken away.

    Raises:
        InputError: missing or damaged file, or one that holds something else.
    """
    content: Any = read_file(path)
    for key in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(
            f"weights {path} must be a state dict, a dict from parameter names to tensors, or hold one as "
            f"{', '.join(repr(name) for name in _CONTAINERS)}"
        )
    prefix = "module."
    inside = bool(content) and all(key.startswith(prefix) for key in content)
    return {key.removeprefix(prefix) if inside else key: value for key, value in content.items()}


def adapt(state: Mapping[str, Tensor], module: nn.Module) -> tuple[State, list[str]]:
    """Give weights from elsewhere the names that they have in ``module``.

    Nothing is left out and, but for one thing, nothing is made up: whether all fits is for ``load_into`` to say. The
    one thing is ``num_batches_tracked``, which old files lack and which nothing depends on; it becomes 0.

    Args:
        state: of the file.
        module: what it is for.

    Returns:
        The weights, and what was done, in words; no words, if nothing had to be.
    """
    own = module.state_dict()
    candidates = {source: _renamed(state, names) for source, names in _NAMES.items()}
    source = max(candidates, key=lambda name: len(candidates[name].keys() & own.keys()))  # of equals, the first
    adapted = candidates[source]
    matched = len(adapted.keys() & own.keys())
    report = [] if source == "our own" else [f"named as in {source}: {matched} of {len(state)} tensors match"]
    absent = [key for key in own if key not in adapted and key.endswith(".num_batches_tracked")]
    if absent and matched:
        adapted |= {key: torch.zeros_like(own[key], device="cpu") for key in absent}
        report.append(f"num_batches_tracked, which the file does not have, is 0 in {len(absent)} layers")
    return adapted, report


def _renamed(state: Mapping[str, Tensor], names: Sequence[tuple[str, str]]) -> State:
    renamed = {}
    for key, value in state.items():
        name = key
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        renamed[name if name not in renamed else key] = value
    return renamed
