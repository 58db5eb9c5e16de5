"""Collective operations of several processes. With a single process, they return their input unchanged."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, distributed

from factor_transfer.errors import InputError

P = ParamSpec("P")
T = TypeVar("T")


def together() -> bool:
    """Whether several processes are connected."""
    return distributed.is_available() and distributed.is_initialized()


def world() -> int:
    """The number of connected processes, including this one."""
    return distributed.get_world_size() if together() else 1


def rank() -> int:
    """The rank of this process, counted from 0. Only the first process writes files and prints."""
    return distributed.get_rank() if together() else 0


def on_rank_zero(function: Callable[[], T]) -> T:
    """Call a function in the first process, and return its result or raise its error in all processes.

    The other processes wait. The function must not use collective operations.

    Raises:
        InputError: if the function raises one.
        OSError: if the function raises one.
    """
    if world() == 1:
        return function()
    outcome: list[Any] = [None]
    if rank() == 0:
        try:
            outcome = [(function(), None)]
        except (InputError, OSError) as error:
            outcome = [(None, error)]
    distributed.broadcast_object_list(outcome, 0)
    result, raised = outcome[0]
    if raised is not None:
        raise raised
    return result


def by_rank_zero(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function to run only in the first process and return its result in all, see ``on_rank_zero``."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return on_rank_zero(lambda: function(*args, **kwargs))

    return call


def all_gather_object(value: T) -> list[T]:
    """The objects of all processes in the order of their ranks: plain values, or tensors on the CPU."""
    values: list[Any] = [value]
    if world() > 1:
        values = [None] * world()
        distributed.all_gather_object(values, value)
    return values


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of the tensors of all processes, which must have the same shape."""
    if world() > 1:
        tensor = tensor.clone()
        distributed.all_reduce(tensor)
    return tensor


def all_gather_rows(tensor: Tensor) -> Tensor:
    """The rows (B, …) of all processes, concatenated in the order of their ranks. B may differ between processes."""
    if world() == 1:
        return tensor
    sizes = [torch.zeros(1, dtype=torch.int64, device=tensor.device) for _ in range(world())]
    distributed.all_gather(sizes, sizes[0].new_tensor([len(tensor)]))
    counts = [int(size) for size in sizes]
    padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def all_reduce_max(values: Sequence[int], device: torch.device | str = "cpu") -> list[int]:
    """The elementwise maximum of the values of all processes.

    Args:
        values: the values of this process. All processes must have the same number of values.
        device: the device on which the processes communicate.
    """
    if world() == 1:
        return list(values)
    tensor = torch.tensor(values, device=device)
    distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
    return tensor.tolist()


def broadcast_from_rank_zero(tensors: Sequence[Tensor]) -> None:
    """Overwrite the tensors of every process by those of the first process, in place."""
    if world() > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, 0)


def leave() -> None:
    """End the connection between the processes."""
    if together():
        distributed.destroy_process_group()
