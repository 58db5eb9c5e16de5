"""ONNX: the format of most other runtimes, written by PyTorch's exporter and checked by onnx."""

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
        exported: the graph.

    Raises:
        InputError: if ONNX does not support an operator, or its libraries are not installed.
    """
    need("onnx")
    with captured_output(), explaining(exported, "an ONNX model"):
        program = torch.onnx.export(exported, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False)
        assert program is not None
        return _checked(program.model_proto)


def to_int8(content: bytes, images: Tensor) -> bytes:
    """Quantise an ONNX file to 8-bit weights and activations, with pairs of QuantizeLinear and DequantizeLinear.

    Weights use only 7 of the 8 bits: on x86 processors without VNNI, 16-bit sums of two 8-bit products overflow.

    Args:
        content: the content of a float32 ``.onnx`` file.
        images: the calibration images (N, C, H, W), as the file takes them.
    """
    need("onnx")
    with captured_output(), tempfile.TemporaryDirectory() as folder:
        tool: Any = import_module("onnxruntime.quantization")
        source, target = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
        source.write_bytes(content)
        remaining = iter(images.split(1))

        class Reader(tool.CalibrationDataReader):
            """An iterator over the calibration images."""

            def get_next(self) -> dict[str, Any] | None:
                image = next(remaining, None)
                return None if image is None else {INPUT: image.numpy()}

        tool.quantize_static(
            source,
            target,
            Reader(),
            quant_format=tool.QuantFormat.QDQ,
            activation_type=tool.QuantType.QUInt8,
            weight_type=tool.QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
        return _checked(import_module("onnx").load(target))


def _checked(model: Any) -> bytes:
    """The bytes of a valid model, without the exporter's notes about its source code."""
    import_module("onnx").checker.check_model(model, full_check=True)
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    del model.graph.value_info[:]  # shapes of intermediate values, which runtimes infer
    return bytes(model.SerializeToString())
