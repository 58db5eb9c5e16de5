"""Compilation of networks: fewer passes over memory on a CPU, fewer kernel launches on a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from factor_transfer.data import Batch
from factor_transfer.methods import Method, Teacher, load_trained_state, trained_state
from factor_transfer.taps.extract import Taps

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# On a CPU, compiling takes about a minute and saves about a fifth of each step, so it only pays above this much
# arithmetic. The bound is in operations, not in seconds, so that a resumed training decides as it did before.
_WORTHWHILE_FLOPS = 30e12
_WORTHWHILE_STEPS = 1000  # on a GPU, where small networks wait for kernel launches

# How far a compiled gradient may be from the eager one, relative to its norm: in float32, and in bfloat16. In a deep
# network, where rounding changes every gradient, it may also be this many times as far as the gradient of weights with
# a relative perturbation of _PERTURBATION.
_TOLERANCE, _TOLERANCE_HALF, _TIMES = 0.01, 0.1, 5.0
_PERTURBATION = 1e-6


def worthwhile(macs: int, images: int, steps: int, device: torch.device) -> bool:
    """Whether a training is long enough for compilation to pay.

    Args:
        macs: the multiply-accumulate operations of a forward pass of one image; a backward pass costs two of these.
        images: the number of training images, over all epochs.
        steps: the number of steps, over all epochs.
        device: the device of the training.
    """
    return steps >= _WORTHWHILE_STEPS if device.type == "cuda" else 6 * macs * images >= _WORTHWHILE_FLOPS


def compile_networks(fabric: "Fabric", method: Method, batch: Batch) -> str | None:
    """Compile the networks of a method in place, and compare their gradient with the eager one.

    Only networks are compiled, not the small terms between them, because PyTorch's compiler (2.13, on a CPU) has been
    seen to return a wrong gradient for a normalised map. The comparison leaves weights and statistics unchanged.

    Args:
        fabric: device and precision.
        method: the method, in training mode. ``set_eager`` undoes the compilation.
        batch: a batch with the size that all steps have.

    Returns:
        ``None`` if the networks are compiled; otherwise the reason why not, and the method is unchanged.
    """
    state = {key: value.clone() for key, value in trained_state(method).items()}
    eager = _gradient(fabric, method, batch)
    _perturb(method)
    noise = _distance(_gradient(fabric, method, batch), eager)
    # Static shapes allow faster kernels. The random numbers are those of an eager step.
    options = {"fallback_random": True, **({"triton.cudagraphs": True} if fabric.device.type == "cuda" else {})}
    for teacher in _teachers(method):
        teacher.prepare_network()  # no step has run it yet if its features are cached, but validation will run it
    try:
        for network in _networks(method):
            if network._compiled_call_impl is None:  # a shared teacher may be compiled already
                network.hold()
                network.compile(dynamic=False, options=options)
        for teacher in _teachers(method):
            teacher.whole = True  # a compiled network needs no parts to keep memory low
        load_trained_state(method, state)
        compiled = _gradient(fabric, method, batch)
    except Exception as error:  # compilers fail in many ways, none of which should end a training
        set_eager(method)
        return (str(error).splitlines() or [type(error).__name__])[0][:200]
    finally:
        load_trained_state(method, state)
    distance = _distance(compiled, eager)
    tolerance = _TOLERANCE if fabric.strategy.precision.precision == "32-true" else _TOLERANCE_HALF
    if not distance <= max(tolerance, _TIMES * noise):
        set_eager(method)
        return f"its gradient would differ by {distance:.1%} of its norm"
    return None


def _distance(gradient: Tensor, eager: Tensor) -> float:
    return float((gradient - eager).norm() / eager.norm())


@torch.no_grad()
def _perturb(method: Method) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in method.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
            parameter.mul_(1 + _PERTURBATION * noise)


def _gradient(fabric: "Fabric", method: Method, batch: Batch) -> Tensor:
    """The gradient of all trained parameters, as one vector."""
    torch.manual_seed(0)
    with fabric.autocast():
        loss = method(*batch)["loss"]
    loss.backward()
    gradients = [parameter.grad.flatten() for parameter in method.parameters() if parameter.grad is not None]
    method.zero_grad()
    return torch.cat(gradients)


def set_eager(method: nn.Module) -> None:
    """Undo ``compile_networks``."""
    for network in _networks(method):
        network._compiled_call_impl = None
        network.release()
    for teacher in _teachers(method):
        teacher.whole = False


@contextmanager
def eagerly(yes: bool = True) -> Iterator[None]:
    """A context in which compiled networks run eagerly, for example for a last batch of another size."""
    if not yes:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _teachers(method: nn.Module) -> list[Teacher]:
    return [module for module in method.modules() if isinstance(module, Teacher)]


def _networks(method: nn.Module) -> list[Taps]:
    """The networks that are compiled: the trained ones and the teacher's."""
    return [module for module in method.modules() if isinstance(module, Taps)]
