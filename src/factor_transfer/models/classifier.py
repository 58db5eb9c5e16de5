"""The classifier of a network: the layer that computes the logits."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from factor_transfer.models.inference import eval_mode
from factor_transfer.models.outputs import logits_of


def find_classifier(model: nn.Module, images: Tensor) -> nn.Linear | nn.Conv2d | None:
    """The layer that computes the logits: the last one whose output equals them.

    Args:
        model: the network, images (B, C, H, W) -> logits (B, K).
        images: two or more images, preprocessed for the network.

    Returns:
        A linear layer or a 1x1 convolution; ``None`` if no layer's output equals the logits, such as when they are the
        mean of two layers.
    """
    outputs: list[tuple[nn.Linear | nn.Conv2d, Tensor]] = []

    def record(module: Any, args: Any, output: Tensor) -> None:
        outputs.append((module, output))

    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    handles = [layer.register_forward_hook(record) for layer in layers]
    try:
        with eval_mode(model):
            logits = logits_of(model(images))
    finally:
        for handle in handles:
            handle.remove()
    for layer, output in reversed(outputs):
        if output.numel() == logits.numel() and torch.allclose(output.reshape(logits.shape), logits):
            return layer
    return None


def reorder_outputs(model: nn.Module, images: Tensor, order: Sequence[int]) -> bool:
    """Permute a network's logits by permuting the rows of its classifier, in place.

    Args:
        model: the network, images (B, C, H, W) -> logits (B, K).
        images: two or more images, preprocessed for the network.
        order: the index of the old output for each new output, a permutation of 0 to K - 1.

    Returns:
        Whether the logits were permuted. If the classifier cannot be found, the network is not changed.

    Example:
        >>> import torch
        >>> from factor_transfer import build_model
        >>> from factor_transfer.models.classifier import reorder_outputs
        >>> model, images = build_model("resnet8", 3).eval(), torch.randn(2, 3, 32, 32)
        >>> before = model(images)
        >>> reorder_outputs(model, images, [2, 0, 1])
        True
        >>> torch.equal(model(images), before[:, [2, 0, 1]])
        True
    """
    layer = find_classifier(model, images)
    if layer is None or len(layer.weight) != len(order):
        return False
    rows = torch.tensor(order, device=layer.weight.device)
    with torch.no_grad():
        layer.weight.copy_(layer.weight[rows].clone())
        if layer.bias is not None:
            layer.bias.copy_(layer.bias[rows].clone())
    return True
