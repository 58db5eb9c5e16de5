"""Weights from elsewhere: the same networks, whose layers have other names.

The names that others use are facts, and stand in a table. A file is trusted no more than any other (see
``checkpoint``), and its weights fit completely or not at all.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from factor_transfer.errors import InputError
from factor_transfer.files import State, is_state, read_file

# What a file of several things calls the weights among them.
_CONTAINERS = ("model", "state_dict", "net")

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


def read_foreign(path: Path) -> State:
    """Read weights: of ours, or a file that holds them beside other things, maybe from several devices.

    Args:
        path: safetensors, or a PyTorch file: a state dict, or ``{"model": …}``, ``{"state_dict": …}`` or
            ``{"net": …}`` with anything beside. What ``DataParallel`` or ``torch.compile`` put before all names is
            taken away.

    Raises:
        InputError: missing or damaged file; one that names code; one that holds no weights, or several.
    """
    content = read_file(path, _INERT)
    if isinstance(content, dict) and not is_state(content):
        found = [name for name in _CONTAINERS if isinstance(content.get(name), dict)]
        if len(found) > 1:
            raise InputError(f"weights {path} hold {' and '.join(found)}; write a file of the one that is meant")
        content = content[found[0]] if found else content
    if not is_state(content):
        raise InputError(
            f"weights {path} must be a state dict, a dict from parameter names to tensors, or hold one as "
            f"{', '.join(repr(name) for name in _CONTAINERS)}"
        )
    while content:
        around = [prefix for prefix in _WRAPPERS if all(key.startswith(prefix) for key in content)]
        if not around:
            break
        content = {key.removeprefix(around[0]): value for key, value in content.items()}
    return content


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
    matching = {
        source: [key for key in adapted if key in own and own[key].shape == adapted[key].shape]
        for source, adapted in candidates.items()
    }
    # By names before shapes: a network of another width has its layers named all the same. Of equals, the first.
    source = max(candidates, key=lambda name: (len(candidates[name].keys() & own.keys()), len(matching[name])))
    adapted, report = candidates[source], []
    if source != "our own":
        report.append(f"named as in {source}: {len(matching[source])} of {len(state)} tensors match")
    absent = [key for key in own if key not in adapted and _counts(key, adapted)]
    if absent:
        adapted |= {key: torch.zeros_like(own[key], device="cpu") for key in absent}
        report.append(f"num_batches_tracked, which the file does not have, is 0 in {len(absent)} layers")
    return adapted, report


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
