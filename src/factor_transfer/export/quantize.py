"""Eight bits: where a network's values lie, from training images, and how they are rounded.

Post-training static quantisation (Jacob et al.: Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference, CVPR 2018), with a scale for each output channel of the weights.
"""

from importlib import import_module

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from factor_transfer.data import Split
from factor_transfer.errors import InputError
from factor_transfer.export.formats.optional import captured_output
from factor_transfer.export.graph import capture, explaining

LEAST = 32  # images: of fewer, the largest values are a matter of chance
_BATCH = 32


def calibration(train: Split, count: int) -> Tensor:
    """Training images to quantise by, from all over the set, not augmented.

    Args:
        train: the training images.
        count: how many; all, if there are fewer.

    Returns:
        uint8 (N, C, H, W).

    Raises:
        InputError: fewer than ``LEAST``.
    """
    count = min(count, len(train))
    if count < LEAST:
        raise InputError(
            f"{count} images to calibrate by are too few: their largest values are a matter of chance. Give at least "
            f"{LEAST}, with --calibration N, of the {len(train)} training images there are"
        )
    return train.images[torch.linspace(0, len(train) - 1, count).long()]


def quantized(program: nn.Module, images: Tensor, dynamic: bool) -> ExportedProgram:
    """A program's graph with 8-bit weights and activations, for XNNPACK (PT2E).

    Args:
        program: see ``Program``.
        images: to calibrate by, as the program takes them.
        dynamic: see ``InputSpec``.

    Raises:
        InputError: it cannot be quantised.
    """
    exported = capture(program, images, dynamic=True)  # to be calibrated batch by batch, whatever comes out
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
