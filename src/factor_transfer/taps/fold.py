"""Batch norm folded into the convolutions before it: fewer passes over memory, for networks that are not trained."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from factor_transfer.models.families.resnet import Projection
from factor_transfer.models.inference import copy_network, eval_mode
from factor_transfer.taps.extract import Taps

TOLERANCE = 1e-3  # of a folded network's features and logits, relative to the largest of each


def fold_batch_norm(network: Taps, images: Tensor) -> Taps:
    """The same network in evaluation mode, each ``BatchNorm2d`` that can be folded into a ``Conv2d`` replaced.

    A pair is folded if nothing but the batch norm looks at what the convolution returns. Which those are is found out
    by running the network once; it is left as it is if the result is another one, see ``TOLERANCE``.

    Args:
        network: is not changed.
        images: a few raw ones (B, C, H, W).

    Returns:
        A copy, or ``network`` itself where there is nothing to fold. Paths of modules stay what they are.
    """
    with _in_full(images.device.type):
        return _fold(network, images)


def _fold(network: Taps, images: Tensor) -> Taps:
    pairs = _pairs(network, images)
    if not pairs:
        return network
    folded = copy_network(network).eval()
    for convolution, norm in pairs:
        before, behind = (folded.model.get_submodule(path) for path in (convolution, norm))
        assert isinstance(before, nn.Conv2d)
        assert isinstance(behind, nn.BatchNorm2d)
        folded.model.set_submodule(convolution, fuse_conv_bn_eval(before, behind))
        folded.model.set_submodule(norm, nn.Identity())
    with eval_mode(network):
        same = _close(network(images), folded(images))
    return folded if same else network


@contextmanager
def _in_full(device: str) -> Iterator[None]:
    """In float32, whatever a training is in: less would not tell a wrong network from a rounded one."""
    with torch.autocast(device, enabled=False), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


class _Readers(TorchFunctionMode):
    """Counts what looks at the convolutions' outputs, but for what is done within a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[str, Tensor]] = {}  # kept, so that no other tensor gets the same id
        self.reads: Counter[str] = Counter()
        self.within = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if not self.within:
            for value in tree_leaves((args, kwargs)):
                if id(value) in self.made:
                    self.reads[self.made[id(value)][0]] += 1
        return func(*args, **(kwargs or {}))


def _pairs(network: Taps, images: Tensor) -> list[tuple[str, str]]:
    """Paths of convolutions, and of the batch norms that alone look at what those return."""
    readers = _Readers()
    calls: Counter[str] = Counter()
    found: dict[str, str] = {}

    def made(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            calls[path] += 1
            readers.made[id(output)] = path, output

        return hook

    def enter(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            calls[path] += 1
            readers.within = True
            if id(args[0]) in readers.made:
                found[readers.made[id(args[0])][0]] = path

        return hook

    def leave(module: nn.Module, args: Any, output: Tensor) -> None:
        readers.within = False

    handles = []
    for path, module in network.model.named_modules():
        # Of these types alone is it known what they compute: others may scale their weights, or add an activation. And
        # hooks may make the weights (pruning, weight norm, spectral norm) or change what is returned.
        if module._forward_pre_hooks or module._forward_hooks:
            continue
        if type(module) in (nn.Conv2d, Projection):
            handles.append(module.register_forward_hook(made(path)))
        elif type(module) is nn.BatchNorm2d and module.running_mean is not None:
            handles += [module.register_forward_pre_hook(enter(path)), module.register_forward_hook(leave)]
    try:
        with eval_mode(network), readers:
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return [
        (convolution, norm)
        for convolution, norm in found.items()
        if calls[convolution] == calls[norm] == 1
        and not readers.reads[convolution]
        and not {convolution, f"{norm}:input"} & set(network.taps)
    ]


def _close(one: Any, other: Any) -> bool:
    """Whether two networks say the same to the same images."""
    for a, b in zip(tree_leaves(one), tree_leaves(other), strict=True):
        if isinstance(a, Tensor) and not (a - b).abs().max() <= TOLERANCE * a.abs().max():
            return False
    return True
