"""Conversion of the tokens of vision transformers to feature maps: (B, N, C) -> (B, C, H, W).

The N tokens are a few prefix tokens (class and register tokens), which are dropped, and then one token per patch of the
image, row by row.
"""

from collections.abc import Iterable

from torch import Tensor

from factor_transfer.errors import InputError

# A class token, a distillation token, and registers, of which published models have at most 8.
_MAX_PREFIX_TOKENS = 16


def patch_grid(tokens: int, maps: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """The height and width of the grid of patches.

    The grid has the size of the last feature map before the tokens, which is the patch embedding, or that size halved
    once for each merging of patches.

    Args:
        tokens: the number of tokens N, with class and register tokens.
        maps: the height and width of each feature map before the tokens, in order of execution.

    Raises:
        InputError: if no such grid has N tokens or a few tokens less.
    """
    for height, width in reversed(list(maps)):
        h, w = height, width
        while h * w > 1:
            if 0 <= tokens - h * w <= _MAX_PREFIX_TOKENS:
                return h, w
            h, w = (h + 1) // 2, (w + 1) // 2
    raise InputError(f"{tokens} tokens cannot be arranged as a map of patches; tap a module that returns a map")


def fold(feature: Tensor, grid: tuple[int, int]) -> Tensor:
    """The map (B, C, H, W) of the patch tokens among tokens (B, N, C)."""
    height, width = grid
    maps: Tensor = feature[:, feature.shape[1] - height * width :].transpose(1, 2).unflatten(2, grid)
    return maps
