"""What several processes do together, see ``launch_info``; with one, nothing here does anything."""

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
    """How many processes are connected, this one among them."""
    return distributed.get_world_size() if together() else 1


def rank() -> int:
    """Which of them this is, 0..; the first one writes and speaks."""
    return distributed.get_rank() if together() else 0


def on_rank_zero(act: Callable[[], T]) -> T:
    """Let the first process act; all get what it returns, or raise what it raises.

    The others wait. ``act`` must not ask for what all do together.

    Raises:
        InputError: as ``act`` does; also an ``OSError``.
    """
    if world() == 1:
        return act()
    outcome: list[Any] = [None]
    if rank() == 0:
        try:
            outcome = [(act(), None)]
        except (InputError, OSError) as error:
            outcome = [(None, error)]
    distributed.broadcast_object_list(outcome, 0)
    result, raised = outcome[0]
    if raised is not None:
        raise raised
    return result


def by_rank_zero(function: Callable[P, T]) -> Callable[P, T]:
    """Have the first process alone run a function, for all, see ``on_rank_zero``."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return on_rank_zero(lambda: function(*args, **kwargs))

    return call


def all_gather_object(value: T) -> list[T]:
    """What each process has, in their order; plain values, or tensors on the CPU."""
    values: list[Any] = [value]
    if world() > 1:
        values = [None] * world()
        distributed.all_gather_object(values, value)
    return values


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of all processes' tensors, of one shape."""
    if world() > 1:
        tensor = tensor.clone()
        distributed.all_reduce(tensor)
    return tensor


def all_gather_rows(tensor: Tensor) -> Tensor:
    """All processes' rows, (B, …) of each, in their order; they may have different numbers of them."""
    if world() == 1:
        return tensor
    rows = [torch.zeros(1, dtype=torch.int64, device=tensor.device) for _ in range(world())]
    distributed.all_gather(rows, rows[0].new_tensor([len(tensor)]))
    counts = [int(count) for count in rows]
    padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def all_reduce_max(values: Sequence[int], device: torch.device | str = "cpu") -> list[int]:
    """The largest of what the processes have, place by place.

    Args:
        values: as many in each process.
        device: where processes talk to each other.
    """
    if world() == 1:
        return list(values)
    tensor = torch.tensor(values, device=device)
    distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
    return tensor.tolist()


def broadcast_from_rank_zero(tensors: Sequence[Tensor]) -> None:
    """Give every process the first one's tensors, in place."""
    if world() > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, 0)


def leave() -> None:
    """End the connection."""
    if together():
        distributed.destroy_process_group()
