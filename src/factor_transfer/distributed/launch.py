"""One process or several, which ``torchrun`` or ``srun`` has started: which one this is."""

import os
from typing import NamedTuple

from factor_transfer.errors import InputError


class LaunchInfo(NamedTuple):
    """Where a process stands among those that were started with it.

    Attributes:
        rank: 0 .. ``world`` - 1.
        world: processes in all.
        beside: processes on each node.
        launcher: ``"torchrun"``, ``"srun"`` or none.
    """

    rank: int = 0
    world: int = 1
    beside: int = 1
    launcher: str = ""


def launch_info() -> LaunchInfo:
    """Of this process, as its launcher says; known before any of them has spoken to another.

    Raises:
        InputError: the launcher says it only in part.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:  # set by torchrun
        return LaunchInfo(_number("RANK"), _number("WORLD_SIZE"), _number("LOCAL_WORLD_SIZE"), "torchrun")
    # A batch script knows how many tasks there will be, and is none of them: only srun makes a step.
    if "SLURM_STEP_ID" in os.environ and "SLURM_NTASKS" in os.environ and _number("SLURM_NTASKS") > 1:
        if "SLURM_NTASKS_PER_NODE" not in os.environ:
            raise InputError("srun must be told --ntasks-per-node beside --ntasks")
        return LaunchInfo(_number("SLURM_PROCID"), _number("SLURM_NTASKS"), _number("SLURM_NTASKS_PER_NODE"), "srun")
    return LaunchInfo()


def rank() -> int:
    """Of this process, as far as its launcher says it: 0 where ``launch_info`` refuses what that says."""
    try:
        return launch_info().rank
    except InputError:
        number = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or ""
        return int(number) if number.isdecimal() else 0


def _number(name: str) -> int:
    try:
        return int(os.environ[name])
    except (KeyError, ValueError):
        raise InputError(f"the launcher has not set {name} to a number: {os.environ.get(name)!r}") from None
