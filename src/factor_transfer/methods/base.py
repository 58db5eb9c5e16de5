"""The contract that all training methods share: ``losses = method(images, labels)``.

``losses`` is a dict of 0-d tensors on the device. ``"loss"`` is minimised, ``"loss_…"`` are the parts that add up to
it, and all other entries are figures to display. Every parameter outside a ``Frozen`` module is trained.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from factor_transfer.errors import InputError
from factor_transfer.methods.criterion import Criterion, accuracy, cross_entropy, loss_of_labels
from factor_transfer.taps.extract import Taps

Losses = dict[str, Tensor]

# Indices and views of images, int64 (B,) each -> the teacher's cached targets for them, tensors (B, …); see
# ``pipeline/stages/cache.py``.
CachedTargets = Callable[[Tensor, Tensor], Any]


class Method(nn.Module):
    """A training method: called with images (B, C, H, W) and labels int64 (B,), it returns ``Losses``.

    For images of a training set, it is also called with their indices and, if the images have fixed views, with the
    indices of the views, int64 (B,) each.

    Attributes:
        classifies: whether the trained network classifies images. If so, it is selected by its accuracy, otherwise by
            its loss.
        labelled_share: the share of labelled images in a batch, in 0..1. If it is below 1, losses of labelled images
            are divided by this share of the batch, not by the number of labelled images in it, so that a gradient does
            not depend on how a batch is divided. 1 promises that no image has the label ``UNLABELLED``, so that no
            step has to look for it. ``None``, the default, takes the mean of the images that have a label.
    """

    classifies: bool = True
    labelled_share: float | None = None

    def begin_epoch(self, epoch: int) -> None:
        """Prepare for an epoch of training, counted from 0. Most methods have nothing to prepare."""


class Frozen(nn.Module):
    """A wrapper that is never trained: no gradients, and evaluation mode even after ``train()``.

    Args:
        module: the wrapped module. ``requires_grad`` of its parameters is set to ``False`` in place.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "Frozen":
        """Stay in evaluation mode, whatever ``mode`` is."""
        super().train(False)
        return self

    def stay_frozen(self) -> None:
        """Return to evaluation mode if somebody who holds the wrapped module has set it to training mode."""
        if any(module.training for module in self.modules()):
            self.train(False)

    @torch.no_grad()
    def forward(self, *args: Any) -> Any:
        """The module's output, computed without a graph."""
        self.stay_frozen()
        return self.module(*args)


def check_trained(what: str, module: nn.Module) -> None:
    """Raise an error if a module that is to be trained is frozen.

    Args:
        what: what it is, for the message.
        module: the module. One that has no parameters at all is accepted.

    Raises:
        InputError: if none of its parameters requires a gradient.
    """
    if not any(parameter.requires_grad for parameter in module.parameters()) and any(True for _ in module.parameters()):
        raise InputError(
            f"{what} is frozen: none of its parameters has requires_grad=True. It is perhaps a teacher, or a copy of "
            "one, which is frozen where it is used; call requires_grad_(True) on a copy, or build a new network"
        )


def trained_state(method: nn.Module) -> dict[str, Tensor]:
    """The state dict of a method without its frozen modules."""
    frozen = _frozen_prefixes(method)
    return {key: value for key, value in method.state_dict().items() if not key.startswith(frozen)}


def trained_buffers(method: nn.Module) -> list[tuple[str, Tensor]]:
    """The names and buffers outside frozen modules, such as the running statistics of batch norm."""
    frozen = _frozen_prefixes(method)
    return [(name, value) for name, value in method.named_buffers() if not name.startswith(frozen)]


def load_trained_state(method: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state that ``trained_state`` returned.

    Raises:
        RuntimeError: if the keys or shapes differ from those of the method.
    """
    missing, unexpected = method.load_state_dict(state, strict=False)
    missing = [key for key in missing if not key.startswith(_frozen_prefixes(method))]
    if missing or unexpected:
        raise RuntimeError(f"missing: {missing}, unexpected: {unexpected}")


def _frozen_prefixes(method: nn.Module) -> tuple[str, ...]:
    return tuple(f"{name}." for name, module in method.named_modules() if isinstance(module, Frozen))


class Supervised(Method):
    """Training on labels alone, for a teacher or for a student without a teacher.

    Example:
        >>> import torch
        >>> from factor_transfer import Supervised, build_model
        >>> losses = Supervised(build_model("resnet8", 10))(torch.randn(2, 3, 32, 32), torch.tensor([3, 7]))
        >>> sorted(losses)
        ['accuracy', 'loss']

    Args:
        model: the network, images (B, C, H, W) -> logits (B, K).
        prepare: a module that turns a batch into the network's input, such as ``Normalize``.
        criterion: the loss: logits (B, K) and labels -> 0-d. The default is the cross-entropy.

    Raises:
        InputError: if the network is frozen.
    """

    def __init__(self, model: nn.Module, prepare: nn.Module | None = None, criterion: Criterion | None = None) -> None:
        super().__init__()
        check_trained("the network", model)
        self.model = Taps(model, prepare=prepare)
        self.criterion = criterion or cross_entropy()

    def forward(
        self, images: Tensor, labels: Tensor, indices: Tensor | None = None, views: Tensor | None = None
    ) -> Losses:
        """Compute the loss for images (B, C, H, W) and labels int64 (B,), or probabilities of classes (B, K)."""
        logits, _ = self.model(images)
        loss = loss_of_labels(self.criterion, logits, labels, self.labelled_share)
        return {"loss": loss, "accuracy": accuracy(logits, labels)}
