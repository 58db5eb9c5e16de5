"""The stages of a network: the taps at their ends, and taps that are given by a role.

Everything is observed by running the network once on a few images, so it works for any architecture.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from factor_transfer.errors import InputError
from factor_transfer.models.inference import eval_mode
from factor_transfer.taps.extract import Taps, patch_maps, shapes
from factor_transfer.taps.tokens import patch_grid

# Taps that are given by their role instead of a path.
LAST_STAGE, LAST_CONV = "last-stage", "last-conv"

_SHORTCUTS = "downsample", "shortcut"  # usual names of the path around a block's convolutions
# Parts of the class names of modules that follow a stage and only pass on, pool or reshape its map.
_NOT_AN_END = ("Pool", "Dropout", "Identity", "Flatten")


def maps(model: nn.Module, images: Tensor) -> dict[str, tuple[int, int, int]]:
    """The channels, height and width of the modules' feature maps that are larger than 1 x 1, in order of execution."""
    found: dict[str, tuple[int, int, int]] = {}
    returned = shapes(model, images)
    patches = patch_maps(returned)
    for path, shape in returned.items():
        if len(shape) == 4:
            size, channels = (shape[2], shape[3]), shape[1]
        elif len(shape) == 3:
            try:
                size, channels = patch_grid(shape[1], patches), shape[2]
            except InputError:  # the output is not a sequence of patch tokens
                continue
        else:
            continue
        if size[0] * size[1] > 1:
            found[path] = channels, *size
    return found


def stages(model: nn.Module, images: Tensor) -> list[str]:
    """The taps at the ends of a network's stages, one per resolution.

    The end of a stage is the last of the modules with that resolution that contain at least two thirds as many layers
    as the largest of them, or a normalisation or activation that directly follows it. The last stage ends with its last
    block: a 1x1 convolution that widens the output of the block for the classifier, as in MobileNetV2, is left out,
    since a translator with that many channels would be larger than the network.

    Args:
        model: the network. It is run once, in evaluation mode.
        images: images that are preprocessed for the network, (B, C, H, W).

    Raises:
        InputError: if no module returns a feature map.
    """
    found = maps(model, images)
    modules = dict(model.named_modules())
    skipped = {path for path in found if any(word in type(modules[path]).__name__ for word in _NOT_AN_END)}
    layers = {path: sum(1 for child in modules[path].modules() if not _has_children(child)) for path in found}
    sizes: dict[tuple[int, int], list[str]] = {}
    for path, (_, *size) in found.items():
        if path not in skipped:
            sizes.setdefault((size[0], size[1]), []).append(path)
    ends: list[str] = []
    for paths in sizes.values():
        containers = [path for path in paths if _has_children(modules[path])]
        if not containers:
            continue
        most = max(layers[path] for path in containers)
        end = [path for path in containers if 3 * layers[path] >= 2 * most][-1]
        for path in paths[paths.index(end) + 1 :]:
            if _parent(path) == _parent(end) and found[path] == found[end]:
                end = path
        ends.append(end)
    if not ends:  # in a plain chain of layers, a stage ends with the last layer of its resolution
        ends = [paths[-1] for paths in sizes.values()]
    if not ends:
        raise InputError(f"{type(model).__name__} has no stage that returns a feature map; name a tap")
    return [*ends[:-1], _before_expansion(modules, found, ends[-1])]


def _before_expansion(modules: Mapping[str, nn.Module], found: Mapping[str, tuple[int, int, int]], end: str) -> str:
    """The last block of a stage that ends with a 1x1 convolution with at least twice the block's channels.

    Args:
        modules: the modules of the network, by path.
        found: the feature maps, see ``maps``.
        end: the end of the stage, which is returned if there is no such convolution.
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


def _has_children(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def resolve(model: nn.Module, images: Tensor, tap: str) -> str:
    """The path of a tap that may be given by its role.

    Args:
        model: the network.
        images: images that are preprocessed for the network, (B, C, H, W).
        tap: a tap; or ``"last-stage"``, the end of the last stage; or ``"last-conv"``, the output of the last
            convolution, before normalisation and activation. Convolutions in shortcuts are ignored.

    Raises:
        InputError: if the network has no such module.
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
    """The tap of a stage's feature before its last ReLU, or the stage itself if it does not end with a ReLU.

    Args:
        model: the network.
        images: images that are preprocessed for the network, (B, C, H, W).
        stage: one of the taps that ``stages`` returns.
    """
    paths = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.ReLU | nn.ReLU6) and (path == stage or path.startswith(f"{stage}."))
    ]
    called_once = shapes(model, images)
    paths = [path for path in called_once if path in paths]
    if not paths:
        return stage
    taps = Taps(model, [stage, paths[-1]])
    with eval_mode(taps):
        _, features = taps(images)
    ends_with_relu = features[stage].shape == features[paths[-1]].shape and features[stage].equal(features[paths[-1]])
    return f"{paths[-1]}:input" if ends_with_relu else stage


def feature_shape(model: nn.Module, tap: str, images: Tensor) -> tuple[int, int, int]:
    """The channels, height and width of the feature map at ``tap``.

    Args:
        model: the network. It is run once, in evaluation mode.
        tap: the tap, see ``Taps``.
        images: images that are preprocessed for the network, (B, C, H, W).

    Raises:
        InputError: if the tap does not exist, cannot be used, or does not return a map (B, C, H, W).
    """
    taps = Taps(model, [tap])
    with eval_mode(taps):
        _, features = taps(images)
    shape = tuple(features[tap].shape)
    if len(shape) != 4:
        raise InputError(f"tap {tap!r} returns a feature of shape {shape}; a feature map (B, C, H, W) is needed")
    return shape[1], shape[2], shape[3]
