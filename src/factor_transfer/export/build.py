"""Building the content of an exported file in the requested format and precision."""

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
    """The options of an export.

    Attributes:
        format: the file format, ``"executorch"`` or ``"onnx"``.
        precision: the precision, ``"float32"`` or ``"int8"``.
        form: the form of the input, see ``InputSpec``.
        calibration: the number of training images that an int8 file is calibrated with.
        tolerance: the largest acceptable loss of top-1 in an int8 file, in percentage points.
        qat: the number of epochs of quantisation-aware fine-tuning.
    """

    format: Literal["executorch", "onnx"]
    precision: Literal["float32", "int8"]
    form: InputSpec = field(default_factory=InputSpec)
    calibration: int = 256
    tolerance: float = 1.0
    qat: int = 0


def build_file(network: nn.Module, normalize: Normalize, images: Tensor, options: ExportOptions) -> bytes:
    """The content of an exported file.

    Args:
        network: the network, see ``bare``.
        normalize: the normalisation of its input.
        images: raw images (N, C, H, W), used as examples and for calibration.
        options: the format, the precision and the form.

    Raises:
        InputError: if the network cannot be exported.
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
