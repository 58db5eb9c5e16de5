"""The logits among what a network returns."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from factor_transfer.errors import InputError, printable


def logits_of(output: Any) -> Tensor:
    """The logits (B, K) in a network's output.

    Args:
        output: the logits themselves; a tuple or list that begins with them; a dict that has them as ``"logits"``; or
            an object that has them as an attribute ``logits``, such as those of transformers.

    Raises:
        InputError: an output of another kind.

    Example:
        >>> import torch
        >>> from factor_transfer.models.outputs import logits_of
        >>> logits_of({"logits": torch.zeros(2, 10), "feature": torch.zeros(2, 64)}).shape
        torch.Size([2, 10])
    """
    found = output
    if isinstance(output, Mapping):
        found = output.get("logits")
    elif not isinstance(output, Tensor) and hasattr(output, "logits"):
        found = output.logits
    elif isinstance(output, tuple | list) and output:
        found = output[0]
    if isinstance(found, Tensor):
        return found
    kind = type(output).__name__
    if isinstance(output, Mapping):
        kind += f" with {', '.join(printable(str(key)) for key in output) or 'nothing in it'}"
    elif isinstance(output, tuple | list):
        kind += f" of {', '.join(type(one).__name__ for one in output) or 'nothing'}"
    raise InputError(
        f"its forward returns a {kind}; it must return logits (B, K), a tuple that begins with them, or a dict or an "
        "object that has them as logits"
    )


def return_logits(module: nn.Module, args: Any, output: Any) -> Tensor | None:
    """A forward hook for the root of a network: the network then returns its logits alone.

    A hook, not a module around the network: so paths of taps and keys of weights stay the library's own.
    """
    return None if isinstance(output, Tensor) else logits_of(output)
