"""The one contract of all training: ``losses = method(images, labels)``.

``losses`` is a dict of 0-d tensors on the device. ``"loss"`` is what is minimised; ``"loss_…"`` are its parts,
as they enter the sum; anything else is a figure to show. What is not inside a ``Frozen`` is trained.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from factor_transfer.taps.extract import Taps

Losses = dict[str, Tensor]

# Indices and views, int64 (B,) -> what a teacher said to those views of those images, tensors (B, …); see ``cache.py``.
CachedTargets = Callable[[Tensor, Tensor], Any]


class Method(nn.Module):
    """Anything that trains: called with images (B, C, H, W) and labels int64 (B,), it returns ``Losses``.

    Where the images are of a training set, it is also told their indices, and of fixed views which, int64 (B,) each.

    Attributes:
        classifies: whether what is trained is a network that classifies images, so that it is judged by its accuracy;
            otherwise by its loss.
    """

    classifies: bool = True

    def begin_epoch(self, epoch: int) -> None:
        """Told before each epoch 0.. of training, for what changes with it; nothing does, mostly."""


class Frozen(nn.Module):
    """A module that is used, never trained: no gradient, evaluation mode, whatever ``train()`` says.

    Args:
        module: its parameters are set to need no gradient, in place.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "Frozen":
        """Stay in evaluation mode."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, *args: Any) -> Any:
        """What the module returns, without a graph."""
        return self.module(*args)


def trained_state(method: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of all that is trained: the state without the frozen parts."""
    frozen = _frozen_prefixes(method)
    return {key: value for key, value in method.state_dict().items() if not key.startswith(frozen)}


def trained_buffers(method: nn.Module) -> list[tuple[str, Tensor]]:
    """The buffers of all that is trained, such as the running statistics of batch norm, by name."""
    frozen = _frozen_prefixes(method)
    return [(name, value) for name, value in method.named_buffers() if not name.startswith(frozen)]


def load_trained_state(method: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put back what ``trained_state`` gave.

    Raises:
        RuntimeError: if the keys are not the same or a shape differs.
    """
    missing, unexpected = method.load_state_dict(state, strict=False)
    missing = [key for key in missing if not key.startswith(_frozen_prefixes(method))]
    if missing or unexpected:
        raise RuntimeError(f"missing: {missing}, unexpected: {unexpected}")


def _frozen_prefixes(method: nn.Module) -> tuple[str, ...]:
    return tuple(f"{name}." for name, module in method.named_modules() if isinstance(module, Frozen))


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of right answers in a batch, in percent; 0-d."""
    return 100 * (logits.detach().argmax(1) == labels).float().mean()


class Supervised(Method):
    """Training on labels alone: the teacher, or a student without one.

    Example:
        >>> import torch
        >>> from factor_transfer import Supervised, build_model
        >>> losses = Supervised(build_model("resnet8", 10))(torch.randn(2, 3, 32, 32), torch.tensor([3, 7]))
        >>> sorted(losses)
        ['accuracy', 'loss']

    Args:
        model: images -> logits (B, K).
        prepare: turns a batch into the network's input, such as ``Normalize``.
    """

    def __init__(self, model: nn.Module, prepare: nn.Module | None = None) -> None:
        super().__init__()
        self.model = Taps(model, prepare=prepare)

    def forward(
        self, images: Tensor, labels: Tensor, indices: Tensor | None = None, views: Tensor | None = None
    ) -> Losses:
        """Cross-entropy of images (B, C, H, W) and labels int64 (B,)."""
        logits, _ = self.model(images)
        loss = F.cross_entropy(logits, labels)
        return {"loss": loss, "accuracy": accuracy(logits, labels)}
