"""Features from inside any network: (logits, {tap: feature}).

A tap is a module's dotted path; its feature is what that module returns. ``layer3.2.relu:input`` is what that module
is given instead, and ``layers.3:nhwc`` says that its map has the channels last. Tokens (B, N, C) of a vision
transformer are folded to a map (B, C, H, W). Features are handed back with the logits, nothing is left behind in the
network (but see ``Taps.hold``), and nothing after the last tap that is needed is run.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from factor_transfer.errors import InputError, choose
from factor_transfer.models.inference import eval_mode
from factor_transfer.models.memory_format import memory_format, to_memory_format
from factor_transfer.models.outputs import logits_of
from factor_transfer.taps.tokens import fold, patch_grid

_VIEWS = ("", "input", "nhwc")


class Seen(NamedTuple):
    """What a network says to a batch.

    Attributes:
        logits: (B, K); ``None`` where no one wants them and the network stopped before.
        features: of each tap; maps (B, C, H, W), or vectors (B, C).
    """

    logits: Tensor | None
    features: dict[str, Tensor]


class _Reached(Exception):
    """All taps have their features; the rest of the network need not run."""


class Taps(nn.Module):
    """A network that returns features beside its logits.

    Example:
        >>> import torch
        >>> from factor_transfer import build_model
        >>> from factor_transfer.taps import Taps
        >>> logits, features = Taps(build_model("resnet8", 10), ["layer2", "layer3"])(torch.randn(2, 3, 32, 32))
        >>> features["layer3"].shape
        torch.Size([2, 64, 8, 8])

    Args:
        model: any network whose forward takes a batch of images and returns logits (B, K). Its weights are laid out
            as they are fastest, see ``layout``; their values stay the same.
        taps: where to look; see the module.
        prepare: what turns a batch into the network's input, such as ``Normalize``; ``None`` if it is ready.
        logits: whether they are wanted. If not, the network stops behind the last tap.

    Raises:
        InputError: a tap that the network does not have; the nearest names are given.
    """

    def __init__(
        self,
        model: nn.Module,
        taps: Iterable[str] = (),
        prepare: nn.Module | None = None,
        logits: bool = True,
    ) -> None:
        super().__init__()
        self.memory_format = memory_format(model)
        self.model = to_memory_format(model)
        self.prepare = prepare
        self.logits = logits
        modules = [path for path, _ in model.named_modules() if path]
        self.taps: dict[str, tuple[str, str]] = {}  # tap -> path, view
        for tap in taps:
            path, _, view = tap.partition(":")
            self.taps[tap] = choose("tap", path, modules), choose(f"view of tap {path}", view, _VIEWS)
        self._grids: dict[tuple[str, torch.Size], tuple[int, int]] = {}
        self._features: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        self._looking = False
        self._held: ExitStack | None = None

    def forward(self, images: Tensor) -> Seen:
        """One pass.

        Args:
            images: (B, C, H, W).

        Raises:
            InputError: a tap that is no tensor, is called more than once or not at all, or whose feature is
                changed in place after it was returned.
        """
        x = images if self.prepare is None else self.prepare(images)
        if x.dim() == 4:
            x = x.contiguous(memory_format=self.memory_format)
        if self._held is None:
            with _hooks(self.model, self.taps, self._keep):
                return self._pass(x)
        return self._pass(x)

    def hold(self) -> None:
        """Leave the hooks in the network until ``release``: a pass then does nothing that a compiler cannot follow."""
        if self._held is None:
            self._held = ExitStack()
            self._held.enter_context(_hooks(self.model, self.taps, self._keep))

    def release(self) -> None:
        """Take the hooks away."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def _pass(self, x: Tensor) -> Seen:
        self._features.clear()
        self._versions.clear()
        logits = None
        if self.logits or self.taps:
            self._looking = True
            try:
                logits = logits_of(self.model(x))
            except _Reached:
                logits = None
            finally:
                self._looking = False
        features = dict(self._features)
        self._features.clear()  # nothing is kept from one pass to the next
        for tap in self.taps:
            if tap not in features:
                raise InputError(f"tap {tap!r} is not reached by the network's forward pass")
            if self._held is None and _version(features[tap]) != self._versions[tap]:
                raise InputError(
                    f"the feature of tap {tap!r} is changed in place by what follows it (an in-place "
                    "activation?); tap that module instead, or build the network without in-place operations"
                )
        mapped = {tap: self._as_map(tap, features[tap], x) for tap in self.taps}
        return Seen(logits if self.logits else None, mapped)

    def _keep(self, tap: str, value: Any) -> None:
        """What a hook saw; hooks that are held see passes of others, too."""
        if not self._looking:
            return
        feature = first_tensor(value)
        if feature is None:
            raise InputError(f"tap {tap!r} returns a {type(value).__name__}, not a tensor")
        if tap in self._features:
            raise InputError(f"tap {tap!r} is called more than once a pass; choose the module around it")
        self._features[tap] = feature
        if self._held is None:
            self._versions[tap] = _version(feature)
            if not self.logits and len(self._features) == len(self.taps):
                raise _Reached  # a compiler leaves out by itself what no one wants

    def _as_map(self, tap: str, feature: Tensor, x: Tensor) -> Tensor:
        _, view = self.taps[tap]
        if view == "nhwc" and feature.dim() == 4:
            return feature.permute(0, 3, 1, 2)
        if feature.dim() == 3:
            key = tap, x.shape[2:]
            if key not in self._grids:
                self._grids[key] = patch_grid(feature.shape[1], patch_maps(shapes(self.model, x[:1])))
            return fold(feature, self._grids[key])
        return feature


def shapes(model: nn.Module, images: Tensor) -> dict[str, tuple[int, ...]]:
    """The shape of what each module returns for a batch, in the order in which they return; tokens are not folded.

    Modules that return no tensor or are called more than once (they cannot be taps) are left out.

    Args:
        model: the network. It is run once, in evaluation mode.
        images: (B, C, H, W), ready for the network.
    """
    found: dict[str, tuple[int, ...] | None] = {}

    def keep(path: str, value: Any) -> None:
        feature = first_tensor(value)
        found[path] = tuple(feature.shape) if feature is not None and path not in found else None

    with _hooks(model, {path: (path, "") for path, _ in model.named_modules() if path}, keep), eval_mode(model):
        model(images)
    return {path: shape for path, shape in found.items() if shape is not None}


def patch_maps(found: Mapping[str, tuple[int, ...]]) -> list[tuple[int, int]]:
    """Height and width of the maps (B, C, H, W) before the first tokens: the patches' embedding is the last of them.

    What has four dimensions behind it may be attention: (B, heads, N, N).

    Args:
        found: see ``shapes``.
    """
    before = takewhile(lambda shape: len(shape) != 3, found.values())
    return [(shape[2], shape[3]) for shape in before if len(shape) == 4]


def first_tensor(value: Any) -> Tensor | None:
    """The tensor that a module returns, or the first of several (transformers return tuples and dicts)."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, Sequence) and value:
        value = value[0]
    return value if isinstance(value, Tensor) else None


@contextmanager
def _hooks(model: nn.Module, places: Mapping[str, tuple[str, str]], keep: Callable[[str, Any], None]) -> Iterator[None]:
    """While it lasts, ``keep(name, value)`` is told what passes at each place: name -> (path, view)."""

    def before(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            feature = first_tensor(args)
            # An activation that works in place would change what it was given before anyone has looked at it.
            keep(name, feature.clone() if feature is not None and getattr(module, "inplace", False) else args)

        return hook

    def behind(name: str) -> Callable[..., None]:
        return lambda module, args, output: keep(name, output)

    handles = []
    for name, (path, view) in places.items():
        module = model.get_submodule(path)
        if view == "input":
            handles.append(module.register_forward_pre_hook(before(name)))
        else:
            handles.append(module.register_forward_hook(behind(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _version(feature: Tensor) -> int:
    """How often it was changed in place; PyTorch does not count that in inference mode."""
    return 0 if feature.is_inference() else feature._version
