"""A network turned into the content of a file, in the format and precision that is wanted."""

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from factor_transfer.export.formats.executorch import lower
from factor_transfer.export.formats.onnx import to_int8, to_onnx
from factor_transfer.export.graph import Form, Program, capture
from factor_transfer.export.quantize import quantized
from factor_transfer.models import Normalize


@dataclass(frozen=True)
class Wish:
    """What file is wanted.

    Attributes:
        format: ``"executorch"`` or ``"onnx"``.
        precision: ``"float32"`` or ``"int8"``.
        form: see ``Form``.
        calibration: training images that 8 bits are chosen by.
        tolerance: percentage points of top-1 that an int8 file may lose.
        qat: epochs of quantisation-aware fine-tuning.
    """

    format: Literal["executorch", "onnx"]
    precision: Literal["float32", "int8"]
    form: Form = field(default_factory=Form)
    calibration: int = 256
    tolerance: float = 1.0
    qat: int = 0


def content(network: nn.Module, normalize: Normalize, images: Tensor, wish: Wish) -> bytes:
    """What a file holds.

    Args:
        network: see ``bare``.
        normalize: of its input.
        images: raw ones (N, C, H, W): examples, and what 8 bits are chosen by.
        wish: format, precision and form.
    """
    program = Program(network, normalize if wish.form.raw else None).eval()
    if not wish.form.raw:
        images = normalize(images)
    if wish.format == "executorch" and wish.precision == "int8":
        return lower(quantized(program, images, wish.form.dynamic))
    exported = capture(program, images, wish.form.dynamic)
    if wish.format == "executorch":
        return lower(exported)
    return to_onnx(exported) if wish.precision == "float32" else to_int8(to_onnx(exported), images)
