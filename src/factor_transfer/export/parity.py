"""The comparison of an exported file with the trained network on the test images."""

from typing import Any

import torch
from torch import Tensor, nn

from factor_transfer.data import Split, in_order
from factor_transfer.export.formats.runtimes import ExportedFile, run_over
from factor_transfer.models import Normalize
from factor_transfer.training.evaluate import predict as run_network
from factor_transfer.training.evaluate import top

CLOSE = 1e-3  # the largest acceptable difference of a float32 file's logits
_BATCH = 250


def compare(network: nn.Module, normalize: Normalize, file: ExportedFile, test: Split) -> dict[str, Any]:
    """Run all test images through the trained network and through the file.

    Args:
        network: the trained network on the CPU: normalised images (B, C, H, W) -> logits (B, K).
        normalize: the normalisation of its input.
        file: the exported file of the network.
        test: the test images.

    Returns:
        The number of ``images``; ``top1_trained``, ``top1_file`` and ``equal_predictions`` in percent; and the
        ``largest_logit_difference``.
    """
    trained, labels = run_network(nn.Sequential(normalize, network), in_order(test, _BATCH))
    batches = (batch.images for batch in in_order(test, _BATCH))
    if file.dtype != torch.uint8:
        batches = (normalize(images) for images in batches)
    exported = run_over(file, batches)
    return {
        "images": len(labels),
        "top1_trained": top(trained, labels)["top1"],
        "top1_file": top(exported, labels)["top1"],
        "equal_predictions": round(100 * (trained.argmax(1) == exported.argmax(1)).float().mean().item(), 4),
        "largest_logit_difference": _largest(trained - exported),
    }


def _largest(difference: Tensor) -> float:
    return difference.abs().max().item()


def verdict(figures: dict[str, Any], precision: str, tolerance: float) -> str | None:
    """The reason why a file is rejected; ``None`` if it is accepted.

    Args:
        figures: the results of ``compare``.
        precision: the precision of the file, ``"float32"`` or ``"int8"``.
        tolerance: the largest acceptable loss of top-1 in an int8 file, in percentage points.
    """
    difference, lost = figures["largest_logit_difference"], figures["top1_trained"] - figures["top1_file"]
    if precision == "float32" and not difference <= CLOSE:
        return f"its logits differ from the trained student's by up to {difference:.2g}, more than {CLOSE:g}"
    if precision == "int8" and not lost <= tolerance:
        return (
            f"it loses {lost:.2f} points of top-1 ({figures['top1_trained']:.2f} % to {figures['top1_file']:.2f} %), "
            f"more than --tolerance {tolerance:g}; more images (--calibration N) or quantisation-aware fine-tuning "
            "(--qat EPOCHS) may help"
        )
    return None
