"""The anatomy of a network: where its stages end, and which taps are sensible.

All of it is observed: the network is run once on a few images, so that it works for any.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from factor_transfer.errors import InputError
from factor_transfer.models.inference import eval_mode
from factor_transfer.taps.extract import Taps, patch_maps, shapes
from factor_transfer.taps.tokens import patch_grid

# A tap that is said by what it is, not by its path.
LAST_STAGE, LAST_CONV = "last-stage", "last-conv"

_SHORTCUTS = "downsample", "shortcut"  # what the field calls a block's way around its convolutions
# What stands behind a stage and returns its map, but is not what the stage computes.
_NOT_AN_END = ("Pool", "Dropout", "Identity", "Flatten")


def maps(model: nn.Module, images: Tensor) -> dict[str, tuple[int, int, int]]:
    """Channels, height and width of each module's feature map larger than 1 x 1, in the order in which they return."""
    found: dict[str, tuple[int, int, int]] = {}
    returned = shapes(model, images)
    patches = patch_maps(returned)
    for path, shape in returned.items():
        if len(shape) == 4:
            size, channels = (shape[2], shape[3]), shape[1]
        elif len(shape) == 3:
            try:
                size, channels = patch_grid(shape[1], patches), shape[2]
            except InputError:  # no tokens of patches
                continue
        else:
            continue
        if size[0] * size[1] > 1:
            found[path] = channels, *size
    return found


def stages(model: nn.Module, images: Tensor) -> list[str]:
    """The taps at the ends of a network's stages: behind its activation, before the next change of resolution.

    At each resolution it is the last module that holds at least two thirds as many layers as any other there does, or a
    normalisation or activation right behind it. The last stage ends with its last block: a 1x1 convolution that widens
    the block's output for the classifier, as MobileNetV2 has it, is left out, since a translator of so many channels
    would be larger than the network.

    Args:
        model: the network. It is run once, in evaluation mode.
        images: (B, C, H, W), ready for the network.

    Raises:
        InputError: if there is none; a tap must then be named.
    """
    found = maps(model, images)
    modules = dict(model.named_modules())
    passed = {path for path in found if any(word in type(modules[path]).__name__ for word in _NOT_AN_END)}
    layers = {path: sum(1 for child in modules[path].modules() if not _holds(child)) for path in found}
    sizes: dict[tuple[int, int], list[str]] = {}
    for path, (_, *size) in found.items():
        if path not in passed:
            sizes.setdefault((size[0], size[1]), []).append(path)
    chosen: list[str] = []
    for paths in sizes.values():
        containers = [path for path in paths if _holds(modules[path])]
        if not containers:
            continue
        most = max(layers[path] for path in containers)
        end = [path for path in containers if 3 * layers[path] >= 2 * most][-1]
        for path in paths[paths.index(end) + 1 :]:
            if _parent(path) == _parent(end) and found[path] == found[end]:
                end = path
        chosen.append(end)
    if not chosen:  # a plain chain of layers: the last of each resolution
        chosen = [paths[-1] for paths in sizes.values()]
    if not chosen:
        raise InputError(f"{type(model).__name__} has no stage that returns a feature map; name a tap")
    return [*chosen[:-1], _before_expansion(modules, found, chosen[-1])]


def _before_expansion(modules: Mapping[str, nn.Module], found: Mapping[str, tuple[int, int, int]], end: str) -> str:
    """The last block of a stage whose end is a 1x1 convolution that at least doubles the block's channels.

    Args:
        modules: of the network, by path.
        found: the feature maps, see ``maps``.
        end: the stage's end; it is returned where there is no such convolution.
    """
    paths = list(found)
    paths = paths[: paths.index(end) + 1]
    convolutions = [path for path in paths if isinstance(modules[path], nn.Conv2d)]
    if not convolutions:
        return end
    widens, last = convolutions[-1], modules[convolutions[-1]]
    before = paths[paths.index(widens) - 1] if paths.index(widens) else end
    assert isinstance(last, nn.Conv2d)
    expands = last.kernel_size == (1, 1) and last.groups == 1 and last.out_channels >= 2 * last.in_channels
    # Inside a block, as the last convolution of a ResNet-50, it is preceded by a layer, not by a whole block.
    block = sum(isinstance(child, nn.Conv2d) for child in modules[before].modules()) > 1
    fits = found[before] == (last.in_channels, *found[end][1:]) and found[end][0] == last.out_channels
    return before if expands and block and fits else end


def _holds(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def resolve(model: nn.Module, images: Tensor, tap: str) -> str:
    """The path of a tap that may be given by what it is.

    Args:
        model: the network.
        images: (B, C, H, W), ready for the network.
        tap: a tap; ``"last-stage"``; or ``"last-conv"``, the last convolution's output, before its normalisation,
            the shortcut (whose own convolution is passed over) and the activation.

    Raises:
        InputError: the network has no such place.
    """
    if tap == LAST_STAGE:
        return stages(model, images)[-1]
    if tap == LAST_CONV:
        modules = dict(model.named_modules())
        convolutions = [
            path
            for path in maps(model, images)
            if isinstance(modules[path], nn.Conv2d) and not any(word in path.lower() for word in _SHORTCUTS)
        ]
        if not convolutions:
            raise InputError(f"{type(model).__name__} has no convolution that returns a feature map; name a tap")
        return convolutions[-1]
    return tap


def pre_activation(model: nn.Module, images: Tensor, stage: str) -> str:
    """The tap of a stage's feature before its last ReLU; the stage's own where it does not end with one.

    Args:
        model: the network.
        images: (B, C, H, W), ready for the network.
        stage: a tap of ``stages``.
    """
    paths = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.ReLU | nn.ReLU6) and (path == stage or path.startswith(f"{stage}."))
    ]
    callable_once = shapes(model, images)
    paths = [path for path in callable_once if path in paths]
    if not paths:
        return stage
    taps = Taps(model, [stage, paths[-1]])
    with eval_mode(taps):
        _, features = taps(images)
    ends_with_it = features[stage].shape == features[paths[-1]].shape and features[stage].equal(features[paths[-1]])
    return f"{paths[-1]}:input" if ends_with_it else stage


def feature_shape(model: nn.Module, tap: str, images: Tensor) -> tuple[int, int, int]:
    """Channels, height and width of the feature map at ``tap``.

    Args:
        model: the network. It is run once, in evaluation mode.
        tap: see ``Taps``.
        images: (B, C, H, W), ready for the network.

    Raises:
        InputError: a tap that does not exist, cannot be one, or returns no map (B, C, H, W).
    """
    taps = Taps(model, [tap])
    with eval_mode(taps):
        _, features = taps(images)
    shape = tuple(features[tap].shape)
    if len(shape) != 4:
        raise InputError(f"tap {tap!r} returns shape {shape}; a feature map (B, C, H, W) is needed")
    return shape[1], shape[2], shape[3]
