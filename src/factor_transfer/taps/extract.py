"""Features of the inner modules of any network, returned beside its logits: (logits, {tap: feature}).

A tap is a module's dotted path, and its feature is the module's output. With the suffix ``:input``, as in
``layer3.2.relu:input``, the feature is the module's input instead. With the suffix ``:nhwc``, as in ``layers.3:nhwc``,
the output is a map with channels last. Tokens (B, N, C) of a vision transformer are folded to a map (B, C, H, W). After
a pass no hooks remain in the network (unless ``Taps.hold`` was called), and modules after the last tap are not run if
the logits are not needed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from threading import get_ident
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from factor_transfer.errors import InputError, choose
from factor_transfer.models.inference import eval_mode
from factor_transfer.models.memory_format import memory_format
from factor_transfer.models.outputs import logits_of
from factor_transfer.taps.tokens import fold, patch_grid

_VIEWS = ("", "input", "nhwc")


class Seen(NamedTuple):
    """The outputs of a network for a batch.

    Attributes:
        logits: the logits (B, K); ``None`` if they were not requested.
        features: the features by tap, each a map (B, C, H, W) or a vector (B, C).
    """

    logits: Tensor | None
    features: dict[str, Tensor]


class _AllTapsReached(Exception):
    """Raised to end a pass when the features of all taps are available and no logits are requested."""


class _Pass:
    """The features of one forward pass of a network, which other threads may run at the same time.

    Args:
        last: the number of features after which the pass ends; ``None`` if it does not end early.
        eager: whether the pass is run as written. A compiler cannot trace versions and exceptions, and removes unused
            computations itself.
    """

    def __init__(self, last: int | None, eager: bool) -> None:
        self.last, self.eager = last, eager
        self.features: dict[str, Tensor] = {}
        self.versions: dict[str, int] = {}
        self.thread = get_ident() if eager else None

    def capture(self, tap: str, value: Any) -> None:
        """Store the value of a tap."""
        if self.eager and get_ident() != self.thread:  # the hooks of a pass run in those of other threads, too
            return
        feature = first_tensor(value)
        if feature is None:
            raise InputError(f"tap {tap!r} returns a {type(value).__name__}, not a tensor")
        if tap in self.features:
            raise InputError(f"tap {tap!r} is called more than once per pass; choose the module that contains it")
        self.features[tap] = feature
        if self.eager:
            self.versions[tap] = _version(feature)
            if len(self.features) == self.last:
                raise _AllTapsReached


class Taps(nn.Module):
    """A wrapper around a network that returns features beside the logits.

    Example:
        >>> import torch
        >>> from factor_transfer import build_model
        >>> from factor_transfer.taps import Taps
        >>> logits, features = Taps(build_model("resnet8", 10), ["layer2", "layer3"])(torch.randn(2, 3, 32, 32))
        >>> features["layer3"].shape
        torch.Size([2, 64, 8, 8])

    Args:
        model: any network, images (B, C, H, W) -> logits (B, K). It is given images in the memory format in which it is
            fastest, see ``models/memory_format``. Its weights are left as they are; on a GPU it is faster still if they
            have that format, too: ``model.to(memory_format=torch.channels_last)``.
        taps: the dotted paths of the modules whose features are returned, with optional suffixes ``:input`` and
            ``:nhwc`` as described above.
        prepare: a module that turns a batch into the network's input, such as ``Normalize``; ``None`` if batches need
            no preprocessing.
        logits: whether the logits are needed. If not, a pass ends after the last tap.

    Raises:
        InputError: if the network has no such tap. The message gives the nearest names.
    """

    def __init__(
        self,
        model: nn.Module,
        taps: Iterable[str] = (),
        prepare: nn.Module | None = None,
        logits: bool = True,
    ) -> None:
        super().__init__()
        self.channels_last = memory_format(model) == torch.channels_last
        self.model = model
        self.prepare = prepare
        self.logits = logits
        modules = [path for path, _ in model.named_modules() if path]
        self.taps: dict[str, tuple[str, str]] = {}  # tap -> path, view
        for tap in taps:
            path, _, view = tap.partition(":")
            self.taps[tap] = choose("tap", path, modules), choose(f"view of tap {path}", view, _VIEWS)
        self._grids: dict[tuple[str, torch.Size], tuple[int, int]] = {}
        self._held: ExitStack | None = None
        self._held_pass: _Pass | None = None  # the pass that held hooks record

    def forward(self, images: Tensor) -> Seen:
        """Compute the logits and features of a batch.

        Args:
            images: the images before ``prepare``, (B, C, H, W).

        Raises:
            InputError: if the module of a tap returns no tensor, is called more than once or not at all, or if its
                output is modified in place after it was returned.
        """
        x = images if self.prepare is None else self.prepare(images)
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)
        one = _Pass(None if self.logits else len(self.taps), self._held is None)
        if self._held is None:
            with _hooks(self.model, self.taps, one.capture):
                logits = self._run(x)
        else:
            self._held_pass = one
            try:
                logits = self._run(x)
            finally:
                self._held_pass = None
        return Seen(logits if self.logits else None, self._maps(one, x))

    def hold(self) -> None:
        """Keep the hooks in the network until ``release``, because a compiler cannot trace a pass that adds hooks."""
        if self._held is None:
            self._held = ExitStack()
            self._held.enter_context(_hooks(self.model, self.taps, self._capture_held))

    def release(self) -> None:
        """Remove the hooks that ``hold`` left in the network."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def _capture_held(self, tap: str, value: Any) -> None:
        if self._held_pass is not None:  # held hooks also run in passes outside this wrapper
            self._held_pass.capture(tap, value)

    def _run(self, x: Tensor) -> Tensor | None:
        if not self.logits and not self.taps:
            return None
        try:
            return logits_of(self.model(x))
        except _AllTapsReached:
            return None

    def _maps(self, one: _Pass, x: Tensor) -> dict[str, Tensor]:
        for tap in self.taps:
            if tap not in one.features:
                raise InputError(f"the network's forward pass does not call tap {tap!r}")
            if self._held is None and _version(one.features[tap]) != one.versions[tap]:
                raise InputError(
                    f"the feature of tap {tap!r} is modified in place by a later module (perhaps an in-place "
                    "activation); tap that module instead, or build the network without in-place operations"
                )
        return {tap: self._as_map(tap, one.features[tap], x) for tap in self.taps}

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
    """The shape of each module's output for a batch, by path, in the order in which the modules return.

    Tokens are not folded. Modules that return no tensor or are called more than once are left out, because they cannot
    be taps.

    Args:
        model: the network. It is run once, in evaluation mode.
        images: images that are preprocessed for the network, (B, C, H, W).
    """
    found: dict[str, tuple[int, ...] | None] = {}

    def record(path: str, value: Any) -> None:
        feature = first_tensor(value)
        found[path] = tuple(feature.shape) if feature is not None and path not in found else None

    with _hooks(model, {path: (path, "") for path, _ in model.named_modules() if path}, record), eval_mode(model):
        model(images)
    return {path: shape for path, shape in found.items() if shape is not None}


def patch_maps(found: Mapping[str, tuple[int, ...]]) -> list[tuple[int, int]]:
    """The height and width of each map (B, C, H, W) before the first tokens. The last one is the patch embedding.

    Four-dimensional outputs after the first tokens are ignored, because they may be attention (B, heads, N, N).

    Args:
        found: the shapes of the modules' outputs, see ``shapes``.
    """
    before = takewhile(lambda shape: len(shape) != 3, found.values())
    return [(shape[2], shape[3]) for shape in before if len(shape) == 4]


def first_tensor(value: Any) -> Tensor | None:
    """The tensor that a module returns, or the first of a tuple or dict; ``None`` if that is not a tensor."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, Sequence) and value:
        value = value[0]
    return value if isinstance(value, Tensor) else None


@contextmanager
def _hooks(
    model: nn.Module, taps: Mapping[str, tuple[str, str]], capture: Callable[[str, Any], None]
) -> Iterator[None]:
    """A context in which ``capture(tap, value)`` is called for each tap of a pass; ``taps``: tap -> (path, view)."""

    def input_hook(tap: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            feature = first_tensor(args)
            # An in-place activation would overwrite its input before the feature is used.
            capture(tap, feature.clone() if feature is not None and getattr(module, "inplace", False) else args)

        return hook

    def output_hook(tap: str) -> Callable[..., None]:
        return lambda module, args, output: capture(tap, output)

    handles = []
    for tap, (path, view) in taps.items():
        module = model.get_submodule(path)
        if view == "input":
            handles.append(module.register_forward_pre_hook(input_hook(tap)))
        else:
            handles.append(module.register_forward_hook(output_hook(tap)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _version(feature: Tensor) -> int:
    """The number of in-place modifications of a tensor, which PyTorch does not count in inference mode."""
    return 0 if feature.is_inference() else feature._version
