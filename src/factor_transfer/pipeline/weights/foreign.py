"""Weights files of other projects: the same networks, whose layers have other names.

A table lists the names that other projects use. Files are read without running any code in them (see ``files``), and
their weights must fit the network completely.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from factor_transfer.errors import InputError
from factor_transfer.state_dicts import State, is_state, read_file

# Keys of the weights in files that also contain other things.
_CONTAINERS = ("model", "state_dict", "model_state_dict", "net")
# Keys of an average of the weights over the training, stored beside the weights.
_AVERAGES = ("model_ema", "state_dict_ema", "model_state_dict_ema", "ema_state_dict", "ema")

# Types of accuracies, arguments and histories that such files store beside the weights. They are not needed, and never
# instantiated: the file would set their internal state, which NumPy does not validate in a dtype, for example.
_INERT = (
    "numpy.dtype",
    "numpy.ndarray",
    *(
        f"numpy.{core}.multiarray.{function}"  # with an underscore since NumPy 2
        for core in ("core", "_core")
        for function in ("scalar", "_reconstruct")
    ),
    "argparse.Namespace",  # in the last checkpoint of a training with RepDistiller
    "mmengine.logging.history_buffer.HistoryBuffer",  # in checkpoints of mmpretrain
)

# Prefixes that DataParallel and torch.compile add to all names.
_WRAPPERS = ("module.", "_orig_mod.")
_AVERAGED = "n_averaged"  # the buffer that PyTorch's AveragedModel has beside its module

Names = Sequence[tuple[str, str]]


def _paraphraser(step: int) -> Names:
    """The names in the authors' paraphraser, conv0 … deconv2, with bn0 … bn2_de if a layer has ``step`` = 3 modules."""
    names = []
    for layer in range(3):
        names += [(rf"^conv{layer}\.", f"encoder.{layer * step}."), (rf"^deconv{layer}\.", f"decoder.{layer * step}.")]
        if step == 3:
            names += [(rf"^bn{layer}\.", f"encoder.{layer * step + 1}.")]
            names += [(rf"^bn{layer}_de\.", f"decoder.{layer * step + 1}.")]
    return names


# (stage, index) of the blocks of MobileNetV2: RepDistiller counts within each stage, torchvision and we count through.
_BLOCKS = [(stage, index) for stage, blocks in enumerate((1, 2, 3, 4, 3, 3, 1)) for index in range(blocks)]

# Origin of a file -> (pattern, replacement) pairs that are applied in turn to the names of its layers. Apart from what
# is listed, RepDistiller, timm and torchvision use our names, and so does torchdistill for a paraphraser.
_NAMES: dict[str, Names] = {
    "our own": (),
    # Also used by pytorch-cifar, and by RepDistiller's ResNet50.
    "the authors' code": ((r"\.shortcut\.", ".downsample."), (r"^linear\.", "fc.")),
    "mmpretrain": ((r"^backbone\.", ""), (r"^head\.fc\.", "fc.")),
    "RepDistiller's MobileNetV2": (
        *((rf"^blocks\.{stage}\.{index}\.", f"features.{n}.") for n, (stage, index) in enumerate(_BLOCKS, 1)),
        (r"\.conv\.([01])\.", r".conv.0.\1."),
        (r"\.conv\.3\.", ".conv.1.0."),
        (r"\.conv\.4\.", ".conv.1.1."),
        (r"\.conv\.6\.", ".conv.2."),
        (r"\.conv\.7\.", ".conv.3."),
        (r"^conv1\.", "features.0."),
        (r"^conv2\.", f"features.{len(_BLOCKS) + 1}."),
    ),
    "Knowledge-Distillation-Zoo": ((r"^res(\d)\.", r"layer\1."), (r"\.ds\.", ".downsample.")),
    "the authors' paraphraser": _paraphraser(2),
    "the authors' paraphraser with batch norm": _paraphraser(3),
    # An empty module replaces each batch norm. Also used by mmrazor and Knowledge-Distillation-Zoo.
    "RepDistiller's paraphraser": tuple(
        (rf"^(encoder|decoder)\.{3 * layer}\.", rf"\1.{2 * layer}.") for layer in (1, 2)
    ),
    "a network that was taken out of its wrapper": ((r"^", "module."),),
}


def read_foreign(path: Path, key: str | None = None, notes: list[str] | None = None) -> State:
    """Read the weights in a file of this or another project, which may also contain other things.

    The prefixes that ``DataParallel``, ``torch.compile`` or ``AveragedModel`` add to all names are removed.

    Args:
        path: a safetensors file, or a PyTorch file with a state dict or a dict that contains one as ``"model"``,
            ``"state_dict"``, ``"model_state_dict"`` or ``"net"``.
        key: the key of the weights in such a dict, such as ``"model_ema"``. If it is ``None`` and the dict has both
            the weights and an average of them, the weights themselves are used.
        notes: a list to which a description of any choice is appended.

    Returns:
        The state dict.

    Raises:
        InputError: if the file is missing or damaged, refers to code, has no weights or none under ``key``, or has
            weights under several keys and ``key`` is ``None``.
    """
    notes = [] if notes is None else notes
    content = _choose_weights(path, read_file(path, _INERT), key, notes)
    if not is_state(content):
        raise InputError(
            f"weights {path} must be a state dict (a dict from parameter names to tensors), or contain one under the "
            f"key {', '.join(repr(name) for name in _CONTAINERS)}; weights_key sets another key"
        )
    if _AVERAGED in content and all(name == _AVERAGED or name.startswith(_WRAPPERS) for name in content):
        notes.append(f"the average of {int(content[_AVERAGED])} models")
        content = {name: value for name, value in content.items() if name != _AVERAGED}
    while content:
        wrappers = [prefix for prefix in _WRAPPERS if all(key.startswith(prefix) for key in content)]
        if not wrappers:
            break
        content = {key.removeprefix(wrappers[0]): value for key, value in content.items()}
    return content


def _choose_weights(path: Path, content: Any, key: str | None, notes: list[str]) -> Any:
    """The weights in a file that may contain several state dicts."""
    if key is not None:
        entries = content if isinstance(content, dict) else {}
        if not is_state(entries.get(key)):
            names = [str(name) for name, value in entries.items() if is_state(value) and value]
            keys = f"it has them under {', '.join(map(repr, names))}" if names else "it has none under any key"
            raise InputError(f"{path} has no weights under the key {key!r}, which weights_key names; {keys}")
        return entries[key]
    if not isinstance(content, dict) or is_state(content):
        return content
    plain = [name for name in _CONTAINERS if isinstance(content.get(name), dict)]
    averages = [name for name in _AVERAGES if isinstance(content.get(name), dict)]
    if len(plain) > 1 or (not plain and len(averages) > 1):
        found = plain or averages
        raise InputError(
            f"{path} has weights under several keys, {' and '.join(found)}; choose one: weights_key={found[0]!r}"
        )
    if not plain:
        return content[averages[0]] if averages else content
    if averages:
        notes.append(f"{plain[0]} is used; weights_key={averages[0]!r} selects the average in the same file")
    return content[plain[0]]


def adapt(state: Mapping[str, Tensor], module: nn.Module) -> tuple[State, list[str]]:
    """Rename the weights of another project to the names that they have in ``module``.

    No tensor is dropped, and none is added except ``num_batches_tracked``, which old files lack and which does not
    affect the outputs; it is set to 0. Whether the weights fit is checked by ``load_into``.

    Args:
        state: the weights in the file.
        module: the module that they are for.

    Returns:
        The renamed weights, and a list of descriptions of the changes; it is empty if there were none.

    Example:
        >>> from factor_transfer import build_model
        >>> from factor_transfer.pipeline.weights.foreign import adapt
        >>> model = build_model("resnet8", 10)
        >>> state, report = adapt({f"net.{key}": value for key, value in model.state_dict().items()}, model)
        >>> state.keys() == model.state_dict().keys()
        True
    """
    expected = module.state_dict()
    prefix = _common_prefix(state, expected)
    state = {key.removeprefix(prefix): value for key, value in state.items()}
    candidates = {source: _renamed(state, names) for source, names in _NAMES.items()}
    matching = {
        source: [key for key in adapted if key in expected and expected[key].shape == adapted[key].shape]
        for source, adapted in candidates.items()
    }
    # Names count before shapes, since a network of another width has the same names. The first of equals is chosen.
    source = max(candidates, key=lambda name: (len(candidates[name].keys() & expected.keys()), len(matching[name])))
    adapted, report = candidates[source], [f"the prefix {prefix!r} of all names is removed"] if prefix else []
    if source != "our own":
        report.append(f"the names are those of {source}: {len(matching[source])} of {len(state)} tensors match")
    absent = [key for key in expected if key not in adapted and _is_batch_counter(key, adapted)]
    if absent:
        adapted |= {key: torch.zeros_like(expected[key], device="cpu") for key in absent}
        report.append(f"num_batches_tracked is missing in the file and set to 0 in {len(absent)} layers")
    return adapted, report


def _common_prefix(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """The prefix of all names if the network was part of a larger module, such as ``model.`` in Lightning."""
    prefix = ""
    while state:
        first = {key.removeprefix(prefix).partition(".")[0] + "." for key in state}
        if len(first) > 1 or any(key.startswith(tuple(first)) for key in expected):
            break
        longer = prefix + first.pop()
        if not all(key.startswith(longer) for key in state):
            break
        prefix = longer
    # All names of another project may begin alike; its entry in the table accounts for that.
    return prefix if any(key.removeprefix(prefix) in expected for key in state) else ""


def _renamed(state: Mapping[str, Tensor], names: Names) -> State:
    """The weights under other names; under their original names if two would become equal, so that none is lost."""
    renamed = {}
    for key, value in state.items():
        name = key
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed if len(renamed) == len(state) else dict(state)


def _is_batch_counter(key: str, state: State) -> bool:
    """Whether a key is the batch counter of a batch normalisation whose statistics are in ``state``."""
    layer, _, rest = key.rpartition("num_batches_tracked")
    return not rest and f"{layer}running_mean" in state and f"{layer}running_var" in state
