"""A network turned into the content of a file, in the format and precision that is wanted."""

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from factor_transfer.export.formats.executorch import lower
from factor_transfer.export.formats.onnx import to_int8, to_onnx
from factor_transfer.export.graph import InputSpec, Program, capture
from factor_transfer.export.quantize import quantized
from factor_transfer.models import Normalize


@dataclass(frozen=True)
class ExportOptions:
    """What file is wanted.

    Attributes:
        format: ``"executorch"`` or ``"onnx"``.
        precision: ``"float32"`` or ``"int8"``.
        form: see ``InputSpec``.
        calibration: training images that 8 bits are chosen by.
        tolerance: percentage points of top-1 that an int8 file may lose.
        qat: epochs of quantisation-aware fine-tuning.
    """

    format: Literal["executorch", "onnx"]
    precision: Literal["float32", "int8"]
    form: InputSpec = field(default_factory=InputSpec)
    calibration: int = 256
    tolerance: float = 1.0
    qat: int = 0


def build_file(network: nn.Module, normalize: Normalize, images: Tensor, options: ExportOptions) -> bytes:
    """What a file holds.

    Args:
        network: see ``bare``.
        normalize: of its input.
        images: raw ones (N, C, H, W): examples, and what 8 bits are chosen by.
        options: format, precision and form.
    """
    program = Program(network, normalize if options.form.raw else None).eval()
    if not options.form.raw:
        images = normalize(images)
    if options.format == "executorch" and options.precision == "int8":
        return lower(quantized(program, images, options.form.dynamic))
    exported = capture(program, images, options.form.dynamic)
    if options.format == "executorch":
        return lower(exported)
    return to_onnx(exported) if options.precision == "float32" else to_int8(to_onnx(exported), images)
