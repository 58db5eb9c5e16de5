"""ONNX: the form that most other runtimes take. Written by PyTorch's exporter, checked by onnx."""

import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from factor_transfer.export.formats.optional import captured_output, need
from factor_transfer.export.graph import explaining

INPUT, OUTPUT = "images", "logits"


def to_onnx(exported: ExportedProgram) -> bytes:
    """The content of an ``.onnx`` file, float32.

    Args:
        exported: a graph.

    Raises:
        InputError: an operator that ONNX does not have; the extra is not installed.
    """
    need("onnx")
    with captured_output(), explaining(exported, "an ONNX model"):
        program = torch.onnx.export(exported, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False)
        assert program is not None
        return _checked(program.model_proto)


def to_int8(content: bytes, images: Tensor) -> bytes:
    """The same with 8-bit weights and activations, as pairs of QuantizeLinear and DequantizeLinear.

    Weights have 7 bits: on x86 processors without VNNI, 16-bit sums of two products of 8 bits overflow.

    Args:
        content: of an ``.onnx`` file, float32.
        images: to calibrate by, as the file takes them; (N, C, H, W).
    """
    need("onnx")
    with captured_output(), tempfile.TemporaryDirectory() as folder:
        tool: Any = import_module("onnxruntime.quantization")
        given, written = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
        given.write_bytes(content)
        remaining = iter(images.split(1))

        class Reader(tool.CalibrationDataReader):
            """Hands out one image after another."""

            def get_next(self) -> dict[str, Any] | None:
                image = next(remaining, None)
                return None if image is None else {INPUT: image.numpy()}

        tool.quantize_static(
            given,
            written,
            Reader(),
            quant_format=tool.QuantFormat.QDQ,
            activation_type=tool.QuantType.QUInt8,
            weight_type=tool.QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
        return _checked(import_module("onnx").load(written))


def _checked(model: Any) -> bytes:
    """A model's bytes, without what the exporter noted of the source code it came from."""
    import_module("onnx").checker.check_model(model, full_check=True)
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    del model.graph.value_info[:]  # shapes in between, which a runtime infers
    return bytes(model.SerializeToString())
