"""Images and feature maps as inline PNG."""

import base64
from io import BytesIO

import numpy as np
from PIL import Image
from torch import Tensor

_LARGEST = 112  # the largest height or width of an image on the page, in pixels


def picture(image: Tensor) -> str:
    """A raw image as a data URI.

    Args:
        image: the image, uint8 (C, H, W). If it does not have three channels, their mean is shown.
    """
    values = image.permute(1, 2, 0).numpy() if len(image) == 3 else image.float().mean(0).round().byte().numpy()
    drawn = Image.fromarray(values)
    drawn.thumbnail((_LARGEST, _LARGEST))
    return _uri(drawn)


def heat_map(values: Tensor, low: float, high: float) -> str:
    """A matrix as a data URI, with one pixel per value, from dark (low) to bright (high).

    Args:
        values: the values, (H, W).
        low: the value of the darkest colour.
        high: the value of the brightest colour.
    """
    from matplotlib import colormaps

    shares = ((values - low) / max(high - low, 1e-12)).clamp(0, 1)
    colors = colormaps["viridis"](shares.numpy().astype(np.float64), bytes=True)
    return _uri(Image.fromarray(colors[..., :3]))


def _uri(image: Image.Image) -> str:
    file = BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
