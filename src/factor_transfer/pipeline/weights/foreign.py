"""Weights from elsewhere: the same networks, whose layers have other names.

The names that others use are facts, and stand in a table. A file is trusted no more than any other (see
``checkpoint``), and its weights fit completely or not at all.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from factor_transfer.errors import InputError
from factor_transfer.files import State, is_state, read_file

# What a file of several things calls the weights among them.
_CONTAINERS = ("model", "state_dict", "model_state_dict", "net")
# What it calls an average of them over the training, which lies beside them.
_AVERAGES = ("model_ema", "state_dict_ema", "model_state_dict_ema", "ema_state_dict", "ema")

# What such files hold beside the weights, in objects of other libraries: accuracies, arguments, histories. Nobody looks
# at them, so they are not made: a dtype, say, takes its state from the file, and NumPy believes all of it.
_INERT = (
    "numpy.dtype",
    "numpy.ndarray",
    *(
        f"numpy.{core}.multiarray.{function}"  # with an underscore since NumPy 2
        for core in ("core", "_core")
        for function in ("scalar", "_reconstruct")
    ),
    "argparse.Namespace",  # RepDistiller's last file of a training
    "mmengine.logging.history_buffer.HistoryBuffer",  # mmpretrain's files of a training
)

# What DataParallel and torch.compile put before all names.
_WRAPPERS = ("module.", "_orig_mod.")
_AVERAGED = "n_averaged"  # what PyTorch's AveragedModel has beside its module

Names = Sequence[tuple[str, str]]


def _paraphraser(step: int) -> Names:
    """The authors' conv0 … deconv2 and, where there are any, bn0 … bn2_de, in stacks of ``step`` modules a layer."""
    names = []
    for layer in range(3):
        names += [(rf"^conv{layer}\.", f"encoder.{layer * step}."), (rf"^deconv{layer}\.", f"decoder.{layer * step}.")]
        if step == 3:
            names += [(rf"^bn{layer}\.", f"encoder.{layer * step + 1}.")]
            names += [(rf"^bn{layer}_de\.", f"decoder.{layer * step + 1}.")]
    return names


# Blocks of MobileNetV2 by stage and place in it, as RepDistiller counts them; we count on, as torchvision does.
_BLOCKS = [(stage, place) for stage, blocks in enumerate((1, 2, 3, 4, 3, 3, 1)) for place in range(blocks)]

# Whose file it is -> what of a layer's name becomes what of ours, one after another. But for what is listed,
# RepDistiller, timm and torchvision name the layers as we do, and torchdistill those of a paraphraser.
_NAMES: dict[str, Names] = {
    "our own": (),
    # Also pytorch-cifar, and RepDistiller's ResNet50.
    "the authors' code": ((r"\.shortcut\.", ".downsample."), (r"^linear\.", "fc.")),
    "mmpretrain": ((r"^backbone\.", ""), (r"^head\.fc\.", "fc.")),
    "RepDistiller's MobileNetV2": (
        *((rf"^blocks\.{stage}\.{place}\.", f"features.{n}.") for n, (stage, place) in enumerate(_BLOCKS, 1)),
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
    # An empty module holds the place of each batch norm. Also mmrazor and Knowledge-Distillation-Zoo.
    "RepDistiller's paraphraser": tuple(
        (rf"^(encoder|decoder)\.{3 * layer}\.", rf"\1.{2 * layer}.") for layer in (1, 2)
    ),
    "a network that was taken out of its wrapper": ((r"^", "module."),),
}


def read_foreign(path: Path, key: str | None = None, notes: list[str] | None = None) -> State:
    """Read weights: of ours, or a file that holds them beside other things, maybe from several devices.

    Args:
        path: safetensors, or a PyTorch file: a state dict, or ``{"model": …}``, ``{"state_dict": …}``,
            ``{"model_state_dict": …}`` or ``{"net": …}`` with anything beside. What ``DataParallel``,
            ``torch.compile`` or ``AveragedModel`` put before all names is taken away.
        key: the name of the weights in such a file, such as ``"model_ema"``; where it is left out and there is an
            average beside the plain weights, the plain ones are taken.
        notes: a list to which what was chosen is added, in words.

    Raises:
        InputError: missing or damaged file; one that names code; one that holds no weights, several, or none of the
            name ``key``.
    """
    notes = [] if notes is None else notes
    content = _choose_weights(path, read_file(path, _INERT), key, notes)
    if not is_state(content):
        raise InputError(
            f"weights {path} must be a state dict, a dict from parameter names to tensors, or hold one as "
            f"{', '.join(repr(name) for name in _CONTAINERS)}; weights_key names another one"
        )
    if _AVERAGED in content and all(name == _AVERAGED or name.startswith(_WRAPPERS) for name in content):
        notes.append(f"the average of {int(content[_AVERAGED])} models")
        content = {name: value for name, value in content.items() if name != _AVERAGED}
    while content:
        around = [prefix for prefix in _WRAPPERS if all(key.startswith(prefix) for key in content)]
        if not around:
            break
        content = {key.removeprefix(around[0]): value for key, value in content.items()}
    return content


def _choose_weights(path: Path, content: Any, key: str | None, notes: list[str]) -> Any:
    """The weights in a file that may hold several."""
    if key is not None:
        held = content if isinstance(content, dict) else {}
        if not is_state(held.get(key)):
            names = [str(name) for name, value in held.items() if is_state(value) and value]
            has = f"it has {', '.join(map(repr, names))}" if names else "it has no weights under a name"
            raise InputError(f"weights {path} hold none as {key!r}, which weights_key names; {has}")
        return held[key]
    if not isinstance(content, dict) or is_state(content):
        return content
    plain = [name for name in _CONTAINERS if isinstance(content.get(name), dict)]
    averages = [name for name in _AVERAGES if isinstance(content.get(name), dict)]
    if len(plain) > 1 or (not plain and len(averages) > 1):
        found = plain or averages
        raise InputError(f"weights {path} hold {' and '.join(found)}; choose one: weights_key={found[0]!r}")
    if not plain:
        return content[averages[0]] if averages else content
    if averages:
        notes.append(f"{plain[0]} is used; weights_key={averages[0]!r} uses the average that is beside it")
    return content[plain[0]]


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
    prefix = _common_prefix(state, own)
    state = {key.removeprefix(prefix): value for key, value in state.items()}
    candidates = {source: _renamed(state, names) for source, names in _NAMES.items()}
    matching = {
        source: [key for key in adapted if key in own and own[key].shape == adapted[key].shape]
        for source, adapted in candidates.items()
    }
    # By names before shapes: a network of another width has its layers named all the same. Of equals, the first.
    source = max(candidates, key=lambda name: (len(candidates[name].keys() & own.keys()), len(matching[name])))
    adapted, report = candidates[source], [f"without {prefix!r}, which all names begin with"] if prefix else []
    if source != "our own":
        report.append(f"named as in {source}: {len(matching[source])} of {len(state)} tensors match")
    absent = [key for key in own if key not in adapted and _counts(key, adapted)]
    if absent:
        adapted |= {key: torch.zeros_like(own[key], device="cpu") for key in absent}
        report.append(f"num_batches_tracked, which the file does not have, is 0 in {len(absent)} layers")
    return adapted, report


def _common_prefix(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """What all names begin with because the network was a part of a larger module, such as Lightning's ``model.``."""
    prefix = ""
    while state:
        first = {key.removeprefix(prefix).partition(".")[0] + "." for key in state}
        if len(first) > 1 or any(key.startswith(tuple(first)) for key in own):
            break
        longer = prefix + first.pop()
        if not all(key.startswith(longer) for key in state):
            break
        prefix = longer
    # Names of others may begin with the same, too: then the prefix is theirs, and stands in their table.
    return prefix if any(key.removeprefix(prefix) in own for key in state) else ""


def _renamed(state: Mapping[str, Tensor], names: Names) -> State:
    """By other names; by their own, if two would have the same: none is lost."""
    renamed = {}
    for key, value in state.items():
        name = key
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed if len(renamed) == len(state) else dict(state)


def _counts(key: str, state: State) -> bool:
    """Whether it is the counter of a batch normalisation whose statistics are there."""
    layer, _, rest = key.rpartition("num_batches_tracked")
    return not rest and f"{layer}running_mean" in state and f"{layer}running_var" in state
