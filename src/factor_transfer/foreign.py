"""Weights from elsewhere: files that hold more than weights, and layers that others name differently.

Nothing is guessed and nothing left out: names are changed by the table below, and ``checkpoint.load_into`` then tells
which tensors have no place and which places have no tensor.
"""

import re
from pathlib import Path

import torch
from torch import nn

from factor_transfer.checkpoint import State, is_state, read_tensors
from factor_transfer.errors import InputError

WRAPPERS = ("model", "state_dict", "net")  # entries under which files that hold more keep the state dict
PARALLEL = "module."  # what nn.DataParallel and its distributed sibling put before every name
COUNTER = "num_batches_tracked"  # a batch norm's; files from before PyTorch 0.4.1 have none


class _Unread:
    """Stands where a file has a NumPy scalar, such as RepDistiller's ``best_acc``.

    Nobody looks at those. So NumPy is not asked to rebuild them: a dtype that takes its state from a file can be made
    to break memory.
    """

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


INERT = [(_Unread, name) for name in ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")]


def _layers(names: str, sequence: str, step: int, first: int = 0) -> list[tuple[str, str]]:
    """Layers ``names``0, 1 and 2, where ``#`` is the number, are the ``first``, ``first + step`` … of a sequence."""
    return [(rf"^{names.replace('#', str(number))}\.", f"{sequence}.{first + step * number}.") for number in range(3)]


# Of each source, pairs of a regular expression and what takes its place. torchvision, timm and RepDistiller name the
# layers of a ResNet as we do; so does RepDistiller a paraphraser with batch norm.
SOURCES: dict[str, list[tuple[str, str]]] = {
    "mmpretrain": [(r"^backbone\.", ""), (r"^head\.fc\.", "fc.")],
    # ResNets of the authors of Factor Transfer, of kuangliu's pytorch-cifar and of akamaster's pytorch_resnet_cifar10.
    "pytorch-cifar": [(r"(^|\.)shortcut\.", r"\1downsample."), (r"^linear\.", "fc.")],
    "the authors' paraphraser": [*_layers("conv#", "encoder", 2), *_layers("deconv#", "decoder", 2)],
    # Their code has the batch norms commented out.
    "the authors' paraphraser, with batch norm": [
        *_layers("conv#", "encoder", 3),
        *_layers("bn#", "encoder", 3, first=1),
        *_layers("deconv#", "decoder", 3),
        *_layers("bn#_de", "decoder", 3, first=1),
    ],
    # An empty module stands where the batch norm would be, and is counted.
    "RepDistiller's paraphraser": [
        (rf"^{side}\.{3 * number}\.", f"{side}.{2 * number}.") for side in ("encoder", "decoder") for number in (1, 2)
    ],
}


def read_foreign(path: Path) -> State:
    """Read a state dict as ``checkpoint.read_weights`` does, also one among other entries or of a parallel model.

    Entries beside the state dict, such as an epoch or an optimizer's state, are not looked at.

    Raises:
        InputError: missing, truncated or corrupted file, one that holds other objects, or no state dict, or several.
    """
    content = read_tensors(path, INERT)
    if not is_state(content):
        found = [name for name in WRAPPERS if name in content] if isinstance(content, dict) else []
        if len(found) > 1:
            raise InputError(f"weights {path} hold {' and '.join(found)}; write a file of the one that is meant")
        if not found or not is_state(content[found[0]]):
            raise InputError(
                f"weights {path} must be a state dict, a dict from parameter names to tensors, or hold one as "
                f"{', '.join(repr(name) for name in WRAPPERS)}"
            )
        content = content[found[0]]
    if all(key.startswith(PARALLEL) for key in content):
        return {key.removeprefix(PARALLEL): value for key, value in content.items()}
    return dict(content)


def adapt(state: State, module: nn.Module) -> tuple[State, list[str]]:
    """Give weights the names that ``module`` has for them.

    Of the known sources, the one by whose names most tensors match is taken, and none if our own names match as many.
    What does not match keeps its name, so that ``load_into`` can say which it is in the file. Batch counters that old
    files lack are set to 0: they have no part in what a trained network computes.

    Returns:
        The state under the module's names, and lines that say what was done; none if nothing was.
    """
    own = module.state_dict()
    ways = {None: dict(state)} | {source: _rename(state, rules, own) for source, rules in SOURCES.items()}
    matched = {source: sum(key in own for key in named) for source, named in ways.items()}
    source = max(ways, key=matched.__getitem__)  # of equals the first
    named, report = ways[source], []
    if source is not None:
        report.append(f"named as in {source}: {matched[source]} of {len(state)} tensors matched")
    absent = [
        key
        for key in own
        if key.endswith(COUNTER) and key not in named and key.removesuffix(COUNTER) + "running_mean" in named
    ]
    if absent:
        named |= {key: torch.zeros_like(own[key]) for key in absent}
        report.append(f"{COUNTER}, absent in old files, set to 0: {len(absent)} tensor{'s' * (len(absent) > 1)}")
    return named, report


def _rename(state: State, rules: list[tuple[str, str]], own: State) -> State:
    """Names that ``own`` has stay; others change if that gives a name of ``own`` that no other has: none is lost."""
    named: State = {}
    for key, value in state.items():
        new = key
        if key not in own:
            for pattern, replacement in rules:
                new = re.sub(pattern, replacement, new)
        fits = new in own and new not in state and new not in named
        named[new if fits else key] = value
    return named
