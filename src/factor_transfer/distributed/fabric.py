"""Device and precision, and the processes that train together: through lightning-fabric."""

import logging
import sys
from datetime import timedelta
from inspect import signature
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from factor_transfer.distributed.launch import launch_info
from factor_transfer.errors import InputError

# lightning-fabric imports torchmetrics, where that is installed, to learn its version, and torchmetrics imports SciPy
# and Matplotlib, which takes longer than all the rest. What depends on the version is not used here.
sys.modules.setdefault("torchmetrics", None)  # type: ignore[arg-type]  # with None, the import fails
try:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
    from lightning_fabric.strategies import DDPStrategy
finally:
    if sys.modules["torchmetrics"] is None:
        del sys.modules["torchmetrics"]

# How long a process waits for the others, since the first one may be filling a cache. A dead one is noticed at once.
_TIMEOUT = timedelta(hours=24)
# The statistics of batch norm are those of the first process. They are sent to the others when they are used, not in
# every step.
_STATISTICS: dict[str, Any] = {
    max({"forward_sync_buffers", "broadcast_buffers"} & {*signature(DistributedDataParallel).parameters}): False
}


def open_fabric(device: str, precision: Any) -> Fabric:
    """Device, precision and processes of a training.

    Args:
        device: the name of the device in a recipe, such as ``"auto"`` or ``"cuda"``.
        precision: ``"32-true"`` or ``"bf16-mixed"``.

    Raises:
        InputError: if there is no such device here, or not one for each process.
    """
    here = launch_info()
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "device 'cuda' cannot be used here: PyTorch finds no CUDA GPU; leave it out, or set device=cpu"
        )
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it greets each process, and names the precision
    try:
        if here.world == 1:
            # Explicit, since Fabric would otherwise guess a launcher from the environment.
            return Fabric(accelerator=device, devices=1, precision=precision, plugins=[LightningEnvironment()])
        launcher = TorchElasticEnvironment() if here.launcher == "torchrun" else SLURMEnvironment(auto_requeue=False)
        strategy = DDPStrategy(timeout=_TIMEOUT, **_STATISTICS)
        fabric = Fabric(
            accelerator=device,
            devices=here.beside,
            num_nodes=here.world // here.beside,
            strategy=strategy,
            precision=precision,
            plugins=[launcher],
        )
        fabric.launch()
    except (RuntimeError, ValueError) as error:
        raise InputError(f"device {device!r} cannot be used here: {error}") from error
    return fabric
