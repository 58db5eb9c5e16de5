"""The network as it runs on a device: with its preprocessing, and without what only training needs."""

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

MOST = 64  # images that a file of dynamic batch size takes at once: what memory is planned for
_TRACED = 16  # images that a dynamic batch is traced with: of fewer, kernels are chosen that suit no other number


class Program(nn.Module):
    """Images in, logits out.

    Args:
        model: normalised images (B, C, H, W) -> logits (B, K).
        normalize: what it wants done to raw images; ``None`` if it is to be given normalised ones.
    """

    scale: Tensor | None
    shift: Tensor | None

    def __init__(self, model: nn.Module, normalize: Normalize | None) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("scale", None if normalize is None else normalize.scale.cpu().clone())
        self.register_buffer("shift", None if normalize is None else normalize.shift.cpu().clone())

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W), 0..255, or normalised float32 -> logits (B, K)."""
        if self.scale is not None and self.shift is not None:
            images = images.to(torch.float32) * self.scale + self.shift
        logits: Tensor = self.model(images)
        return logits


@dataclass(frozen=True)
class InputSpec:
    """What a file takes.

    Attributes:
        raw: uint8 images as they are, and not normalised float32 ones.
        dynamic: 1 to ``MOST`` images at once, and not one.
    """

    raw: bool = True
    dynamic: bool = False


def bare(model: nn.Module, normalize: Normalize, examples: Tensor) -> nn.Module:
    """A copy of a network on the CPU, in evaluation mode, its batch norms folded into its convolutions.

    Args:
        model: is not changed.
        normalize: of its input.
        examples: a few raw images (B, C, H, W).
    """
    alone = copy_network(model).cpu().eval().requires_grad_(False)
    fix_computed_weights(alone)
    _plain(alone)
    folded = fold_batch_norm(Taps(alone, (), copy.deepcopy(normalize).cpu()), examples[:2].cpu())
    return at_rest(folded.model)


def at_rest(network: nn.Module) -> nn.Module:
    """A network as it is to be exported: nothing is left, in place, of what is only for training."""
    _plain(network.cpu().eval().requires_grad_(False))
    return network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def _plain(network: nn.Module) -> None:
    """Replace what is a strided convolution, but written otherwise for the sake of its gradient."""
    for path, module in list(network.named_modules()):
        if isinstance(module, Projection):
            network.set_submodule(path, module.plain())


def capture(module: nn.Module, images: Tensor, dynamic: bool) -> ExportedProgram:
    """A module's graph of operators (``torch.export``).

    Args:
        module: images (B, C, H, W) -> logits (B, K).
        images: some of its input, at least ``_TRACED`` where ``dynamic``; with fewer, they are repeated.
        dynamic: for any number of images up to ``MOST``.

    Raises:
        InputError: it cannot be exported; the operator and the layer are named.
    """
    example = images[torch.arange(_TRACED) % len(images)] if dynamic else images[:1]
    shapes = ({0: Dim("batch", min=1, max=MOST)},) if dynamic else None
    try:
        with captured_output(), torch.no_grad(), torch.backends.nnpack.flags(enabled=False):
            return export(module, (example,), dynamic_shapes=shapes)
    except Exception as error:  # whatever a network does that cannot be captured
        where = _where(module, example)
        raise InputError(f"the network cannot be exported: {where}{_first(error)}") from error


# Tensors' values, taken out of them: what follows may depend on them.
_VALUES = {"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "nonzero"}


class _Last(TorchFunctionMode):
    """Remembers the operator that was called last, among all that a tracer asks of tensors for itself."""

    name = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        if name in _VALUES:
            self.name = name
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and not name.startswith("_"):
            self.name = name
        return made


def _where(module: nn.Module, images: Tensor) -> str:
    """The layer at which tracing fails, and the operator there: it is traced again with hooks that note both.

    It is worth its lines: what ``torch.export`` raises names neither, and who is told the layer can replace it.
    """
    within: list[str] = []
    handles = []
    for path, part in module.named_modules():
        if path and type(part) is not nn.Identity:
            handles.append(part.register_forward_pre_hook(lambda *_, path=path: within.append(path)))
            handles.append(part.register_forward_hook(lambda *_: within.pop() and None))
    last = _Last()
    try:
        with captured_output(), eval_mode(module), last:
            export(module, (images,))
    except Exception:  # the one that is being explained
        pass
    finally:
        for handle in handles:
            handle.remove()
    if not within:
        return ""
    layer = dict(module.named_modules())[within[-1]]
    return f"layer {_path(within[-1])} ({type(layer).__name__}), at {last.name}: "


@contextmanager
def explaining(exported: ExportedProgram, into: str) -> Iterator[None]:
    """While a graph is turned into something else, turn what is raised into words.

    Args:
        exported: the graph.
        into: what it is turned into, for the message.

    Raises:
        InputError: for whatever is raised; the operator, and the layers that have it, if one is named.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"the network cannot be turned into {into}: {blame(exported, _all(error))}") from error


def blame(exported: ExportedProgram, text: str) -> str:
    """The operator that ``text`` names, with the layers that have it; a line of the text, if it names none."""
    named = set(re.findall(r"aten[.:]+(\w+)", text))
    lines = [line for line in text.splitlines() if re.search(r"aten[.:]+\w", line)]
    for graph in (lambda: exported, lambda: exported.run_decompositions()):  # an operator may be part of another one
        try:
            with captured_output():
                found = [(_operator(node), node) for node in graph().graph.nodes if node.op == "call_function"]
        except Exception:  # then the first graph is all there is to look at
            continue
        guilty = [(name, node) for name, node in found if named & {name.split(".")[0], name.replace(".", "_")}]
        if guilty:
            stacks = (list((node.meta.get("nn_module_stack") or {}).values()) for _, node in guilty)
            layers = dict.fromkeys(_path(stack[-1][0]) for stack in stacks if stack)
            return f"operator aten.{guilty[0][0]} of layer {', '.join(list(layers)[:4])}: {_short(lines[0])}"
    return _short("\n".join(lines) or text)


def _operator(node: Node) -> str:
    return str(node.target).removeprefix("aten.")


def _path(path: str) -> str:
    return path.removeprefix("model.") or "(the network itself)"


def _all(error: BaseException | None) -> str:
    """An error and its causes, the innermost first."""
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
