"""ExecuTorch: PyTorch's runtime for devices, with XNNPACK's kernels for the ARM and x86 processors of phones."""

from importlib import import_module

from torch.export import ExportedProgram

from factor_transfer.export.formats.optional import captured_output, need
from factor_transfer.export.graph import explaining


def lower(exported: ExportedProgram) -> bytes:
    """The content of a ``.pte`` file.

    Args:
        exported: the graph, in float32 or quantised.

    Raises:
        InputError: if ExecuTorch does not support an operator, or is not installed.
    """
    need("executorch")
    with captured_output(), explaining(exported, "an ExecuTorch program"):
        exir = import_module("executorch.exir")
        xnnpack = import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
        edge = exir.to_edge_transform_and_lower(exported, partitioner=[xnnpack.XnnpackPartitioner()])
        return bytes(edge.to_executorch().buffer)
