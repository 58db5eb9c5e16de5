"""Quantisation to 8 bits, with ranges that are calibrated on training images.

Post-training static quantisation (Jacob et al.: Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference, CVPR 2018), with one scale per output channel of the weights.
"""

from importlib import import_module

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from factor_transfer.data import Split
from factor_transfer.errors import InputError
from factor_transfer.export.formats.optional import captured_output
from factor_transfer.export.graph import capture, explaining

LEAST = 32  # the smallest number of images; with fewer, the measured ranges would be random
_BATCH = 32


def calibration(train: Split, count: int) -> Tensor:
    """Training images for calibration, evenly spaced over the split and without augmentation.

    Args:
        train: the training images.
        count: the number of images, or all if there are fewer.

    Returns:
        The images, uint8 (N, C, H, W).

    Raises:
        InputError: if there are fewer than ``LEAST`` images.
    """
    count = min(count, len(train))
    if count < LEAST:
        raise InputError(
            f"{count} calibration images are too few, since their value ranges would be random. Use at least {LEAST} "
            f"of the {len(train)} training images, with --calibration N"
        )
    return train.images[torch.linspace(0, len(train) - 1, count).long()]


def quantized(program: nn.Module, images: Tensor, dynamic: bool) -> ExportedProgram:
    """The graph of a program with 8-bit weights and activations, for XNNPACK (PT2E).

    Args:
        program: the program, see ``Program``.
        images: the calibration images, as the program takes them.
        dynamic: whether the graph takes a dynamic batch size, see ``InputSpec``.

    Raises:
        InputError: if the program cannot be quantised.
    """
    exported = capture(program, images, dynamic=True)  # calibration always uses batches
    with captured_output(), torch.no_grad(), explaining(exported, "8 bits"):
        scheme = import_module("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
        pt2e = import_module("torchao.quantization.pt2e.quantize_pt2e")
        quantizer = scheme.XNNPACKQuantizer()
        quantizer.set_global(scheme.get_symmetric_quantization_config(is_per_channel=True))
        observed = pt2e.prepare_pt2e(exported.module(), quantizer)
        for batch in images.split(_BATCH):
            observed(batch)
        converted = pt2e.convert_pt2e(observed)
    return capture(converted, images, dynamic)
