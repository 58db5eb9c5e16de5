"""The graph of a network for a device: with its preprocessing, and without the parts that only training needs."""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.fx import Node
from torch.overrides import TorchFunctionMode

from factor_transfer.errors import InputError
from factor_transfer.export.formats.optional import captured_output
from factor_transfer.models import Normalize
from factor_transfer.models.families.resnet import Projection
from factor_transfer.models.inference import copy_network, eval_mode, fix_computed_weights
from factor_transfer.taps.extract import Taps
from factor_transfer.taps.fold import fold_batch_norm

MOST = 64  # the largest batch of a file with a dynamic batch size, which memory is planned for
_TRACED = 16  # the batch that a dynamic graph is traced with; a smaller one may select kernels that suit no other size


class Program(nn.Module):
    """A network with its normalisation, in the form that is exported.

    Args:
        model: the network: normalised images (B, C, H, W) -> logits (B, K).
        normalize: the normalisation of raw images; ``None`` if the program takes normalised images.
    """

    scale: Tensor | None
    shift: Tensor | None

    def __init__(self, model: nn.Module, normalize: Normalize | None) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("scale", None if normalize is None else normalize.scale.cpu().clone())
        self.register_buffer("shift", None if normalize is None else normalize.shift.cpu().clone())

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits (B, K) of raw images, uint8 (B, C, H, W) in 0..255, or of normalised float32 images."""
        if self.scale is not None and self.shift is not None:
            images = images.to(torch.float32) * self.scale + self.shift
        logits: Tensor = self.model(images)
        return logits


@dataclass(frozen=True)
class InputSpec:
    """The form of the input of an exported file.

    Attributes:
        raw: whether the file takes raw uint8 images, instead of normalised float32 ones.
        dynamic: whether the file takes 1 to ``MOST`` images at once, instead of a single one.
    """

    raw: bool = True
    dynamic: bool = False


def bare(model: nn.Module, normalize: Normalize, examples: Tensor) -> nn.Module:
    """A copy of a network on the CPU, in evaluation mode, with its batch norms folded into its convolutions.

    Args:
        model: the network, which is not changed.
        normalize: the normalisation of its input.
        examples: a few raw images (B, C, H, W).
    """
    copied = copy_network(model).cpu().eval().requires_grad_(False)
    fix_computed_weights(copied)
    _restore_convolutions(copied)
    folded = fold_batch_norm(Taps(copied, (), copy.deepcopy(normalize).cpu()), examples[:2].cpu())
    return at_rest(folded.model)


def at_rest(network: nn.Module) -> nn.Module:
    """Prepare a network for export, in place: on the CPU, in evaluation mode, without the parts for training."""
    _restore_convolutions(network.cpu().eval().requires_grad_(False))
    return network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def _restore_convolutions(network: nn.Module) -> None:
    """Replace each ``Projection`` by the strided convolution that it computes with a safer gradient."""
    for path, module in list(network.named_modules()):
        if isinstance(module, Projection):
            network.set_submodule(path, module.plain())


def capture(module: nn.Module, images: Tensor, dynamic: bool) -> ExportedProgram:
    """Capture the graph of operators of a module with ``torch.export``.

    Args:
        module: the module: images (B, C, H, W) -> logits (B, K).
        images: examples of its input. They are repeated if ``dynamic`` needs more of them.
        dynamic: whether the graph takes any number of images up to ``MOST``.

    Raises:
        InputError: if the module cannot be exported; the message names the operator and the layer.
    """
    example = images[torch.arange(_TRACED) % len(images)] if dynamic else images[:1]
    shapes = ({0: Dim("batch", min=1, max=MOST)},) if dynamic else None
    try:
        with captured_output(), torch.no_grad(), torch.backends.nnpack.flags(enabled=False):
            return export(module, (example,), dynamic_shapes=shapes)
    except Exception as error:  # a network may do anything that cannot be captured
        location = _locate(module, example)
        raise InputError(f"the network cannot be exported: {location}{_first(error)}") from error


# Operators that read the values of tensors, so that the control flow may depend on them.
_VALUES = {"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "nonzero"}


class _LastOperator(TorchFunctionMode):
    """A mode that records the last operator called, ignoring the tracer's own calls."""

    name = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        if name in _VALUES:
            self.name = name
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor) and not name.startswith("_"):
            self.name = name
        return output


def _locate(module: nn.Module, images: Tensor) -> str:
    """The layer and the operator at which tracing fails, found by tracing again with hooks.

    The errors of ``torch.export`` name neither, and the user needs to know which layer to replace.
    """
    active: list[str] = []
    handles = []
    for path, part in module.named_modules():
        if path and type(part) is not nn.Identity:
            handles.append(part.register_forward_pre_hook(lambda *_, path=path: active.append(path)))
            handles.append(part.register_forward_hook(lambda *_: active.pop() and None))
    last = _LastOperator()
    try:
        with captured_output(), eval_mode(module), last:
            export(module, (images,))
    except Exception:  # the error that is being located
        pass
    finally:
        for handle in handles:
            handle.remove()
    if not active:
        return ""
    layer = dict(module.named_modules())[active[-1]]
    return f"layer {_path(active[-1])} ({type(layer).__name__}), at {last.name}: "


@contextmanager
def explaining(exported: ExportedProgram, into: str) -> Iterator[None]:
    """Convert the errors of a conversion of a graph to an ``InputError`` with an explanation.

    Args:
        exported: the graph.
        into: the target of the conversion, for the message.

    Raises:
        InputError: if the conversion raises an error. The message names the operator, and the layers that use it, if
            the error does.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"the network cannot be converted to {into}: {blame(exported, _all(error))}") from error


def blame(exported: ExportedProgram, text: str) -> str:
    """The operator that an error names, with the layers that use it, or a line of the error if it names none.

    Args:
        exported: the graph.
        text: the text of the error.
    """
    named = set(re.findall(r"aten[.:]+(\w+)", text))
    lines = [line for line in text.splitlines() if re.search(r"aten[.:]+\w", line)]
    for graph in (lambda: exported, lambda: exported.run_decompositions()):  # an operator may be part of another one
        try:
            with captured_output():
                operators = [(_operator(node), node) for node in graph().graph.nodes if node.op == "call_function"]
        except Exception:  # the graph cannot be decomposed
            continue
        matching = [(name, node) for name, node in operators if named & {name.split(".")[0], name.replace(".", "_")}]
        if matching:
            stacks = (list((node.meta.get("nn_module_stack") or {}).values()) for _, node in matching)
            layers = dict.fromkeys(_path(stack[-1][0]) for stack in stacks if stack)
            return f"operator aten.{matching[0][0]} of layer {', '.join(list(layers)[:4])}: {_short(lines[0])}"
    return _short("\n".join(lines) or text)


def _operator(node: Node) -> str:
    return str(node.target).removeprefix("aten.")


def _path(path: str) -> str:
    return path.removeprefix("model.") or "(the network itself)"


def _all(error: BaseException | None) -> str:
    """The text of an error and its causes, the innermost first."""
    texts: list[str] = []
    while error is not None:
        texts.insert(0, f"{type(error).__name__}: {error}")
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


def _first(error: Exception) -> str:
    return _short(str(error) or type(error).__name__)


def _short(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:300] if lines else "no reason was given"
