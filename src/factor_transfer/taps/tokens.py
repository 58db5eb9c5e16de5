"""Tokens of vision transformers as feature maps: (B, N, C) -> (B, C, H, W).

The N tokens are one for each patch of the image, row by row, behind a few that stand for no patch: class and
register tokens, which are set aside.
"""

from collections.abc import Iterable

from torch import Tensor

from factor_transfer.errors import InputError

# A class token, one for distillation, and registers: 4 are usual, 8 are the most that is published.
_MOST_PREFIX_TOKENS = 16


def patch_grid(tokens: int, maps: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Height and width of the grid of patches.

    It is the size of the last feature map before the tokens, which is what the patches were embedded by, or that
    size halved as often as merging patches has halved it.

    Args:
        tokens: N, with class and register tokens.
        maps: height and width of the maps that came before, in their order.

    Raises:
        InputError: no such grid leaves a small number of other tokens.
    """
    for height, width in reversed(list(maps)):
        h, w = height, width
        while h * w > 1:
            if 0 <= tokens - h * w <= _MOST_PREFIX_TOKENS:
                return h, w
            h, w = (h + 1) // 2, (w + 1) // 2
    raise InputError(f"{tokens} tokens cannot be laid out as a map of patches; tap a module that returns a map")


def fold(feature: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens (B, N, C) -> map (B, C, H, W), without those before the patches'."""
    height, width = grid
    maps: Tensor = feature[:, feature.shape[1] - height * width :].transpose(1, 2).unflatten(2, grid)
    return maps
