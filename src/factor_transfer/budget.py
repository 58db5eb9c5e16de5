"""What a training costs: seconds and memory, from a few steps of it."""

import time
from collections.abc import Iterable
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor

from factor_transfer.data import Batch
from factor_transfer.methods.base import Method
from factor_transfer.optimization import Optimization

_ENOUGH_S = 4.0  # of measured steps
_MOST_STEPS = 4


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


def measure_training(
    fabric: Fabric, method: Method, batches: Iterable[Batch], optimization: Optimization, steps: int
) -> Budget:
    """Time a few steps of a training, and count what they keep.

    Args:
        fabric: device and precision.
        method: what is trained. Its weights are left changed.
        batches: at least one.
        optimization: how it is trained.
        steps: of the whole training.
    """
    parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
    optimizer, _ = optimization.build(parameters, 1, 1)
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    seconds: list[float] = []
    images = 0
    method.train()
    for batch in batches:
        began = time.perf_counter()
        with fabric.autocast():
            if not images:
                with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
                    loss = method(*batch)["loss"]
            else:
                loss = method(*batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if fabric.device.type == "cuda":
            torch.cuda.synchronize(fabric.device)
        seconds.append(time.perf_counter() - began)
        images = max(images, len(batch.labels))
        if sum(seconds) > _ENOUGH_S or len(seconds) > _MOST_STEPS:
            break
    # The first step allocates and warms up; it counts only where it is the only one.
    step = min(seconds[1:] or seconds)
    weights = sum(value.nbytes for value in method.state_dict().values())
    state = sum(
        value.nbytes for values in optimizer.state.values() for value in values.values() if isinstance(value, Tensor)
    )
    gradients = sum(parameter.nbytes for parameter in parameters)
    memory = weights + state + gradients + sum(kept.values())
    return Budget(steps * step, memory / 1e6, images / step)
