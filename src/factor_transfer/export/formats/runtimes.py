"""Exported files, run by the runtimes that they are for."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from factor_transfer.errors import InputError
from factor_transfer.export.formats.optional import Captured, captured_output, need
from factor_transfer.export.graph import MOST

ENDINGS = {"executorch": ".pte", "onnx": ".onnx"}


class Runtime(Protocol):
    """A file that was loaded.

    Attributes:
        shape: of one image (C, H, W).
        dtype: of its input.
        dynamic: whether it takes several images at once.
        reentrant: whether several threads may run it.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    dynamic: bool
    reentrant: bool

    def run(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W), one or 1 to ``MOST``, -> logits (B, K)."""


class ExecuTorch:
    """A ``.pte`` file."""

    reentrant = False

    def __init__(self, path: Path) -> None:
        need("executorch")
        # What executorch.runtime stands on: that would import the exporter, which takes seconds, too.
        library: Any = import_module("executorch.extension.pybindings._portable_lib")
        with _loading(path):
            self._module = library._load_for_executorch(str(path))
            taken = self._module.method_meta("forward").input_tensor_meta(0)
            self._module.run_method("forward", [torch.zeros(1, *taken.sizes()[1:], dtype=_DTYPES[taken.dtype()])])
        batch, *self.shape = taken.sizes()
        self.shape, self.dtype, self.dynamic = tuple(self.shape), _DTYPES[taken.dtype()], batch > 1

    def run(self, images: Tensor) -> Tensor:
        """See ``Runtime``."""
        logits: Tensor = self._module.run_method("forward", [images])[0]
        return logits


class Onnx:
    """An ``.onnx`` file, run by onnxruntime on the CPU."""

    reentrant = True

    def __init__(self, path: Path) -> None:
        need("onnx")
        runtime: Any = import_module("onnxruntime")
        with _loading(path):
            options = runtime.SessionOptions()
            options.intra_op_num_threads = (
                1  # for images one by one, sharing each among threads costs more than it saves
            )
            self._session = runtime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
            (taken,) = self._session.get_inputs()
            batch, *self.shape = taken.shape
            self.dtype = {"tensor(uint8)": torch.uint8, "tensor(float)": torch.float32}[taken.type]
        self._name = taken.name
        self.shape, self.dynamic = tuple(self.shape), not isinstance(batch, int)

    def run(self, images: Tensor) -> Tensor:
        """See ``Runtime``."""
        return torch.from_numpy(self._session.run(None, {self._name: images.numpy()})[0])


_DTYPES = {0: torch.uint8, 6: torch.float32}  # as ExecuTorch's files number them


def open_file(path: Path) -> Runtime:
    """Load an exported file.

    Raises:
        InputError: it is missing, damaged, of another kind, or its runtime is not installed.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    if path.suffix == ENDINGS["executorch"]:
        return ExecuTorch(path)
    if path.suffix == ENDINGS["onnx"]:
        return Onnx(path)
    raise InputError(f"{path} is no exported network: its name must end in {' or '.join(ENDINGS.values())}")


def run_over(file: Runtime, batches: Iterable[Tensor]) -> Tensor:
    """The logits (N, K) of all images in batches (B, C, H, W), as many at once as the file takes."""
    most = MOST if file.dynamic else 1
    with ThreadPoolExecutor(os.cpu_count() if file.reentrant else 1) as pool:
        said = [list(pool.map(file.run, batch.contiguous().split(most))) for batch in batches]
    return torch.cat([logits for some in said for logits in some])


@contextmanager
def _loading(path: Path) -> Iterator[None]:
    """While a file is loaded, turn what its runtime says into words."""
    heard = Captured()
    try:
        with captured_output() as heard:
            yield
    except InputError:
        raise
    except Exception as error:  # each runtime has its own, for files that are damaged in many ways
        lines = [line.partition("] ")[2] for line in heard.text.splitlines() if "cpuinfo" not in line]
        said = "; ".join(lines[:2] or str(error).splitlines()[:1])
        raise InputError(f"{path} cannot be loaded; it is damaged, or of another kind: {said[:300]}") from error
