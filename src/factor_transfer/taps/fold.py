"""Folding of batch norms into the convolutions before them, which saves passes over memory in frozen networks."""

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

TOLERANCE = 1e-3  # largest difference of a folded network's features and logits, relative to the largest value of each


def fold_batch_norm(network: Taps, images: Tensor) -> Taps:
    """Fold each ``BatchNorm2d`` into the ``Conv2d`` before it, where possible, in a copy of a network.

    A pair is folded if only the batch norm uses the convolution's output. Such pairs are found by running the network
    once. If the outputs of the copy differ by more than ``TOLERANCE``, the network itself is returned.

    Args:
        network: the network, which is not changed.
        images: a few raw images (B, C, H, W).

    Returns:
        A copy in evaluation mode whose modules have the same paths; or ``network`` itself if nothing can be folded.
    """
    with _full_precision(images.device.type):
        return _fold(network, images)


def _fold(network: Taps, images: Tensor) -> Taps:
    pairs = _pairs(network, images)
    if not pairs:
        return network
    folded = copy_network(network).eval()
    for convolution, norm in pairs:
        conv_module, norm_module = (folded.model.get_submodule(path) for path in (convolution, norm))
        assert isinstance(conv_module, nn.Conv2d)
        assert isinstance(norm_module, nn.BatchNorm2d)
        folded.model.set_submodule(convolution, fuse_conv_bn_eval(conv_module, norm_module))
        folded.model.set_submodule(norm, nn.Identity())
    with eval_mode(network):
        same = _close(network(images), folded(images))
    return folded if same else network


@contextmanager
def _full_precision(device: str) -> Iterator[None]:
    """A context without autocast and TF32, whose rounding could hide a wrongly folded network."""
    with torch.autocast(device, enabled=False), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


class _UseCounter(TorchFunctionMode):
    """A mode that counts the uses of each convolution's output outside batch norms.

    Attributes:
        outputs: the path and the output of each convolution, by the output's ``id``. The reference to the output
            prevents another tensor from getting the same ``id``.
        uses: the number of uses by path of the convolution.
        in_batch_norm: whether a batch norm is running, whose uses are not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[int, tuple[str, Tensor]] = {}
        self.uses: Counter[str] = Counter()
        self.in_batch_norm = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if not self.in_batch_norm:
            for value in tree_leaves((args, kwargs)):
                if id(value) in self.outputs:
                    self.uses[self.outputs[id(value)][0]] += 1
        return func(*args, **(kwargs or {}))


def _pairs(network: Taps, images: Tensor) -> list[tuple[str, str]]:
    """The paths of each convolution and the batch norm that is the only user of its output."""
    counter = _UseCounter()
    calls: Counter[str] = Counter()
    found: dict[str, str] = {}

    def after_convolution(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            calls[path] += 1
            counter.outputs[id(output)] = path, output

        return hook

    def before_norm(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            calls[path] += 1
            counter.in_batch_norm = True
            if id(args[0]) in counter.outputs:
                found[counter.outputs[id(args[0])][0]] = path

        return hook

    def after_norm(module: nn.Module, args: Any, output: Tensor) -> None:
        counter.in_batch_norm = False

    handles = []
    for path, module in network.model.named_modules():
        # Subclasses are excluded, because they may scale their weights or add an activation. So are modules with hooks,
        # which may compute the weights (pruning, weight norm, spectral norm) or change the output.
        if module._forward_pre_hooks or module._forward_hooks:
            continue
        if type(module) in (nn.Conv2d, Projection):
            handles.append(module.register_forward_hook(after_convolution(path)))
        elif type(module) is nn.BatchNorm2d and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(before_norm(path)))
            handles.append(module.register_forward_hook(after_norm))
    try:
        with eval_mode(network), counter:
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return [
        (convolution, norm)
        for convolution, norm in found.items()
        if calls[convolution] == calls[norm] == 1
        and not counter.uses[convolution]
        and not {convolution, f"{norm}:input"} & set(network.taps)
    ]


def _close(expected: Any, actual: Any) -> bool:
    """Whether two networks' outputs for the same images differ by at most ``TOLERANCE``."""
    for a, b in zip(tree_leaves(expected), tree_leaves(actual), strict=True):
        if isinstance(a, Tensor) and not (a - b).abs().max() <= TOLERANCE * a.abs().max():
            return False
    return True
