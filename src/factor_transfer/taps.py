"""Features from inside any network: (logits, {tap: feature}).

A tap is a module's dotted path; its feature is what that module returns. Features are handed back with the
logits, nothing is left behind in the network, and nothing after the last tap that is needed is run.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from factor_transfer.errors import InputError, choose
from factor_transfer.inference import evaluating


class _Reached(Exception):
    """All taps have their features; the rest of the network need not run."""


class Taps(nn.Module):
    """A network that returns features beside its logits.

    Args:
        model: any network whose forward takes a batch of images and returns logits (B, K).
        paths: the taps.
        prepare: what turns a batch into the network's input, such as ``Normalize``; ``None`` if it is ready.
        logits: whether they are wanted. If not, the network stops behind the last tap.

    Raises:
        InputError: a tap that the network does not have; the nearest names are given.
    """

    def __init__(
        self,
        model: nn.Module,
        paths: Iterable[str] = (),
        prepare: nn.Module | None = None,
        logits: bool = True,
    ) -> None:
        super().__init__()
        self.model = model
        self.prepare = prepare
        self.logits = logits
        modules = dict(model.named_modules())
        self.paths = [choose("tap", path, [name for name in modules if name]) for path in dict.fromkeys(paths)]

    def forward(self, images: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        """One pass.

        Args:
            images: (B, C, H, W).

        Returns:
            The logits (B, K), or ``None`` if they are not wanted, and the feature of each tap.

        Raises:
            InputError: a tap that is no tensor, is called more than once or not at all, or whose feature is
                changed in place after it was returned.
        """
        features: dict[str, Tensor] = {}
        versions: dict[str, int] = {}

        def keep(path: str) -> Callable[[nn.Module, Any, Any], None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                if not isinstance(output, Tensor):
                    raise InputError(f"tap {path!r} returns a {type(output).__name__}, not a tensor")
                if path in features:
                    raise InputError(f"tap {path!r} is called more than once a pass; choose the module around it")
                features[path] = output
                versions[path] = _version(output)
                if not self.logits and len(features) == len(self.paths):
                    raise _Reached

            return hook

        x = images if self.prepare is None else self.prepare(images)
        handles = [self.model.get_submodule(path).register_forward_hook(keep(path)) for path in self.paths]
        try:
            logits = self.model(x) if self.logits or self.paths else None
        except _Reached:
            logits = None
        finally:
            _remove(handles)
        for path in self.paths:
            if path not in features:
                raise InputError(f"tap {path!r} is not reached by the network's forward pass")
            if _version(features[path]) != versions[path]:
                raise InputError(
                    f"the feature of tap {path!r} is changed in place by what follows it (an in-place "
                    "activation?); tap that module instead, or build the network without in-place operations"
                )
        return logits, features


def _version(feature: Tensor) -> int:
    """How often it was changed in place; PyTorch does not count that in inference mode."""
    return 0 if feature.is_inference() else feature._version


def shapes(model: nn.Module, images: Tensor) -> dict[str, tuple[int, ...]]:
    """The shape of what each module returns for a batch, in the order of the calls.

    Modules that return no tensor or are called more than once (they cannot be taps) are left out.

    Args:
        model: the network. It is run once, in evaluation mode.
        images: (B, C, H, W), ready for the network.
    """
    found: dict[str, tuple[int, ...] | None] = {}

    def keep(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            fits = isinstance(output, Tensor) and path not in found
            found[path] = tuple(output.shape) if fits else None

        return hook

    handles = [module.register_forward_hook(keep(path)) for path, module in model.named_modules() if path]
    try:
        with evaluating(model):
            model(images)
    finally:
        _remove(handles)
    return {path: shape for path, shape in found.items() if shape is not None}


def feature_shape(model: nn.Module, tap: str, images: Tensor) -> tuple[int, int, int]:
    """Channels, height and width of the feature map at ``tap``.

    Args:
        model: the network. It is run once, in evaluation mode.
        tap: a module's path.
        images: (B, C, H, W), ready for the network.

    Raises:
        InputError: a tap that does not exist, cannot be one, or returns no map (B, C, H, W).
    """
    taps = Taps(model, [tap])
    with evaluating(taps):
        _, features = taps(images)
    shape = tuple(features[tap].shape)
    if len(shape) != 4:
        raise InputError(f"tap {tap!r} returns shape {shape}; a feature map (B, C, H, W) is needed")
    return shape[1], shape[2], shape[3]


def last_stage(model: nn.Module, images: Tensor) -> str:
    """The tap of a network's last stage: its last direct child that returns a map larger than 1 x 1.

    Raises:
        InputError: if there is none; a tap must then be named.
    """
    maps = [
        path
        for path, shape in shapes(model, images).items()
        if "." not in path and len(shape) == 4 and shape[2] * shape[3] > 1
    ]
    if not maps:
        raise InputError(f"{type(model).__name__} has no stage that returns a feature map; name a tap")
    return maps[-1]


def _remove(handles: Sequence[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
