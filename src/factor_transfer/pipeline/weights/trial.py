"""A trial step of a network on two images, before anything is trained."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from factor_transfer.data import Batch
from factor_transfer.errors import InputError, first_line, shown
from factor_transfer.methods import Method, trained_state
from factor_transfer.models.outputs import logits_of
from factor_transfer.taps.extract import Taps

_IMAGES = 2


def try_network(name: str, model: nn.Module, images: Tensor, classes: int | None) -> None:
    """Run a network forward and backward in training mode and forward in evaluation mode, leaving it unchanged.

    A network without a classifier is only run in evaluation mode, since it is never trained.

    Args:
        name: the network's name, for messages.
        model: the network: images (B, C, H, W) -> logits (B, K).
        images: normalised images (B, C, H, W), of which two are used.
        classes: the number of classes, K; ``None`` for a network without a classifier, whose outputs are not used.

    Raises:
        InputError: if the network cannot be used; the message names it and the reason.

    Example:
        >>> import torch
        >>> from factor_transfer import build_model
        >>> from factor_transfer.pipeline.weights.trial import try_network
        >>> try_network("resnet8", build_model("resnet8", 10), torch.randn(2, 3, 32, 32), 10)
    """
    images = images[:_IMAGES]
    with _unchanged(model, model.state_dict()), _separate_random_numbers(images):
        for training in (True, False) if classes is not None else (False,):
            model.train(training)
            step = "a training step" if training else "evaluation mode"
            try:
                with torch.set_grad_enabled(training):
                    logits = logits_of(model(images))
                    if classes is not None:
                        _check_logits(logits, len(images), classes)
                    if training and any(parameter.requires_grad for parameter in model.parameters()):
                        logits.float().square().sum().backward()
            except InputError as error:
                raise InputError(f"network {shown(name)} cannot be used: {error}") from error
            except Exception as error:  # a user's network may raise anything
                reason = f"{type(error).__name__}: {first_line(error)}"
                raise InputError(
                    f"network {shown(name)} cannot be used: in {step} on {len(images)} images of size "
                    f"{images.shape[2]}×{images.shape[3]} it raises {reason}; --debug shows the traceback"
                ) from error


def leave_out_unused(method: Method, batch: Batch) -> list[str]:
    """Exclude parameters from training that the loss does not depend on, such as those of a layer that is never called.

    Processes that train together would wait for the gradients of these parameters; a single process ignores them.

    Args:
        method: the method, in training mode.
        batch: a few images with their labels.

    Returns:
        The names of the parameters, which no longer require gradients.
    """
    # The frozen teacher is not restored: its first use folds its batch norms into its weights.
    with _unchanged(method, trained_state(method)), _separate_random_numbers(batch.images):
        method(*batch)["loss"].backward()
        trained = [(name, parameter) for name, parameter in method.named_parameters() if parameter.requires_grad]
        unused = [(name, parameter) for name, parameter in trained if parameter.grad is None]
    for _, parameter in unused:
        parameter.requires_grad_(False)
    return [name for name, _ in unused]


def depends_on_logits(method: Method, network: Taps, batch: Batch) -> bool:
    """Whether the loss of a method depends on the logits of one of its networks.

    Args:
        method: the method, in evaluation mode.
        network: the network, a part of the method.
        batch: a few images with their labels.
    """
    logits: list[Tensor] = []
    hook = network.register_forward_hook(lambda module, images, outputs: logits.append(outputs.logits))
    with torch.enable_grad():
        loss = method(*batch)["loss"]
        hook.remove()
        gradients = torch.autograd.grad(loss, logits, allow_unused=True)
    return any(gradient is not None for gradient in gradients)


def _check_logits(logits: Tensor, images: int, classes: int) -> None:
    if logits.shape != (images, classes):
        raise InputError(f"for {images} images and {classes} classes its logits have the shape {tuple(logits.shape)}")
    if not logits.is_floating_point():
        raise InputError(f"its logits are of type {logits.dtype}, expected floating-point numbers")


@contextmanager
def _separate_random_numbers(images: Tensor) -> Iterator[None]:
    """Restore the random number generators afterwards, so that later training does not depend on the trial."""
    with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        torch.manual_seed(0)
        yield


@contextmanager
def _unchanged(model: nn.Module, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Restore a network's weights and statistics (``state``), gradients and modes afterwards.

    The state is loaded, not copied into the tensors of before, since a module may have replaced a buffer by another.
    """
    modes = {module: module.training for module in model.modules()}
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    before = {key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()}
    for parameter in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        model.load_state_dict(before, strict=False)  # strict would ask for the frozen teacher, too
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        for module, mode in modes.items():
            module.training = mode
