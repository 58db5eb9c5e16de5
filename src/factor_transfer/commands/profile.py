"""What a training costs: seconds and memory, from a few steps of it."""

import time
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor

from factor_transfer.data import Batch
from factor_transfer.methods.base import Method
from factor_transfer.training.optim import Optimization

_STEP_S = 1.0  # a measured step should take no longer; if need be, it is one of fewer images
_PROBE = 4  # images of the first step, which also warms up
_STEPS = 2


class Budget(NamedTuple):
    """An estimate.

    Attributes:
        seconds: of all steps; validation and start-up come on top.
        memory_mb: weights, gradients, the optimiser's state, and what one step keeps for its backward pass.
        images_per_s: of a step.
    """

    seconds: float
    memory_mb: float
    images_per_s: float


def measure_training(fabric: Fabric, method: Method, batch: Batch, optimization: Optimization, steps: int) -> Budget:
    """Time a few steps of a training, and count what they keep.

    Args:
        fabric: device and precision.
        method: what is trained. Its weights are left changed.
        batch: one of the training's.
        optimization: how it is trained.
        steps: of the whole training.
    """
    parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
    optimizer, _ = optimization.build(parameters, 1, 1)
    kept: dict[int, int] = {}
    lasting = {value.untyped_storage().data_ptr() for value in method.state_dict().values()}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in lasting:  # weights are kept anyway, and are no more for more images
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def step(part: Batch) -> float:
        kept.clear()
        began = time.perf_counter()
        with fabric.autocast(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = method(*part)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if fabric.device.type == "cuda":
            torch.cuda.synchronize(fabric.device)
        return time.perf_counter() - began

    method.train()
    whole = len(batch.labels)
    few = min(_PROBE, whole)
    step(first_of(batch, few))
    seconds = step(first_of(batch, few))
    images = min(whole, max(2 * _PROBE, int(_PROBE * _STEP_S / seconds)))
    if images > few:  # what images take, and what the step takes besides, such as moving the weights
        longer = min(step(first_of(batch, images)) for _ in range(_STEPS if seconds < _STEP_S else 1))
        seconds = longer + max(longer - seconds, 0.0) / (images - few) * (whole - images)
    weights = sum(value.nbytes for value in method.state_dict().values())
    state = sum(
        value.nbytes for values in optimizer.state.values() for value in values.values() if isinstance(value, Tensor)
    )
    gradients = sum(parameter.nbytes for parameter in parameters)
    memory = weights + state + gradients + sum(kept.values()) * whole / images
    return Budget(steps * seconds, memory / 1e6, whole / seconds)


def first_of(batch: Batch, count: int) -> Batch:
    """The first so many images of a batch."""
    return Batch(*(None if part is None else part[:count] for part in batch))  # type: ignore[arg-type]
