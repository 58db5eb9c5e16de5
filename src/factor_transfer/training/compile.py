"""Compiled networks: fewer passes over memory on a CPU, fewer launches on a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from factor_transfer.data import Batch
from factor_transfer.methods import Method, Teacher, load_trained_state, trained_state
from factor_transfer.taps.extract import Taps

# Compiling takes a CPU about a minute and saves about a fifth of each step: below so much arithmetic it does not pay.
# The bound is in operations, not in seconds, so that a training is the same one wherever and whenever it goes on.
_WORTHWHILE_FLOPS = 30e12
_WORTHWHILE_STEPS = 1000  # on a GPU, where small networks wait for launches

# How far a compiled gradient may be from the plain one, relative to its length: in float32, and where bfloat16 is used;
# or, of a deep network whose gradient every rounding changes, so many times as far as that of weights rounded anew.
_NEAR, _NEAR_HALF, _TIMES = 0.01, 0.1, 5.0
_ROUNDED = 1e-6


def worthwhile(macs: int, images: int, steps: int, device: torch.device) -> bool:
    """Whether a training is long enough to be compiled.

    Args:
        macs: of a forward pass of one image.
        images: of all epochs; a backward pass costs two forward ones.
        steps: of all epochs.
        device: where it is trained.
    """
    return steps >= _WORTHWHILE_STEPS if device.type == "cuda" else 6 * macs * images >= _WORTHWHILE_FLOPS


def compile_networks(fabric: Fabric, method: Method, batch: Batch) -> str | None:
    """Compile the networks of a method, in place; try them once, and leave nothing changed by that.

    The terms between them are small, and stay as they are: of a normalised map, PyTorch's compiler (2.13, on a CPU) has
    been seen to return a wrong gradient. So what it makes of a network is compared with what the network says itself.

    Args:
        fabric: device and precision.
        method: in training mode. ``set_eager`` undoes it.
        batch: of the size that all steps have.

    Returns:
        ``None``, or why it cannot be; the method is then as it was.
    """
    state = {key: value.clone() for key, value in trained_state(method).items()}
    plain = _gradient(fabric, method, batch)
    _round_otherwise(method)
    noise = _distance(_gradient(fabric, method, batch), plain)
    # Shapes are known and stay: kernels for them are faster than for any. Random numbers are those of the plain step.
    options = {"fallback_random": True, **({"triton.cudagraphs": True} if fabric.device.type == "cuda" else {})}
    for teacher in _teachers(method):
        teacher.prepare_network()  # where its features come from a cache, no step has run it yet, and validation will
    try:
        for network in _networks(method):
            if network._compiled_call_impl is None:  # a shared teacher may be it already
                network.hold()
                network.compile(dynamic=False, options=options)
        for teacher in _teachers(method):
            teacher.whole = True  # a compiled network has its own way to keep memory low
        load_trained_state(method, state)
        compiled = _gradient(fabric, method, batch)
    except Exception as error:  # a compiler fails in many ways, and none of them needs to end a training
        set_eager(method)
        return (str(error).splitlines() or [type(error).__name__])[0][:200]
    finally:
        load_trained_state(method, state)
    distance = _distance(compiled, plain)
    near = _NEAR if fabric.strategy.precision.precision == "32-true" else _NEAR_HALF
    if not distance <= max(near, _TIMES * noise):
        set_eager(method)
        return f"its gradient would be another one, by {distance:.1%} of its length"
    return None


def _distance(gradient: Tensor, plain: Tensor) -> float:
    return float((gradient - plain).norm() / plain.norm())


@torch.no_grad()
def _round_otherwise(method: Method) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in method.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
            parameter.mul_(1 + _ROUNDED * noise)


def _gradient(fabric: Fabric, method: Method, batch: Batch) -> Tensor:
    """Of all that is trained, as one vector."""
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
    """While it lasts, what is compiled runs as it was before, such as for a last batch of another size."""
    if not yes:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _teachers(method: nn.Module) -> list[Teacher]:
    return [module for module in method.modules() if isinstance(module, Teacher)]


def _networks(method: nn.Module) -> list[Taps]:
    """Those that are compiled, the trained ones and the teacher's."""
    return [module for module in method.modules() if isinstance(module, Taps)]
