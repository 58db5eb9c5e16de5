"""The logits in the output of a network."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from factor_transfer.errors import InputError, printable


def logits_of(output: Any) -> Tensor:
    """The logits (B, K) in a network's output.

    Args:
        output: the logits; a tuple or list that begins with them; a dict with the key ``"logits"``; or an object with
            the attribute ``logits``, such as the outputs of transformers.

    Raises:
        InputError: if the output has another form.

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
        kind += f" with {', '.join(printable(str(key)) for key in output) or 'no keys'}"
    elif isinstance(output, tuple | list):
        kind += f" of {', '.join(type(item).__name__ for item in output) or 'length 0'}"
    raise InputError(
        f"its forward returns a {kind}; it must return logits (B, K), a tuple that begins with them, a dict with a key "
        "logits, or an object with an attribute logits"
    )


def return_logits(module: nn.Module, args: Any, output: Any) -> Tensor | None:
    """A forward hook for the root of a network that makes it return only its logits.

    With a module around the network instead, the paths of taps and the keys of weights would change.
    """
    return None if isinstance(output, Tensor) else logits_of(output)
