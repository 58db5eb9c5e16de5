"""The launch information of this process, which ``torchrun`` or ``srun`` may have started with others."""

import os
from typing import NamedTuple

from factor_transfer.errors import InputError


class LaunchInfo(NamedTuple):
    """The place of a process among the processes that a launcher started together.

    Attributes:
        rank: the rank of the process, from 0 to ``world`` - 1.
        world: the number of processes.
        beside: the number of processes on each node.
        launcher: the launcher, ``"torchrun"`` or ``"srun"``; empty if the process was started alone.
    """

    rank: int = 0
    world: int = 1
    beside: int = 1
    launcher: str = ""


def launch_info() -> LaunchInfo:
    """The launch information of this process, from the environment. It is known before the processes are connected.

    Raises:
        InputError: if the launcher set only some of the environment variables.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:  # set by torchrun
        return LaunchInfo(_number("RANK"), _number("WORLD_SIZE"), _number("LOCAL_WORLD_SIZE"), "torchrun")
    # Slurm also sets SLURM_NTASKS for the batch script, which is not a task itself. Only srun creates steps.
    if "SLURM_STEP_ID" in os.environ and "SLURM_NTASKS" in os.environ and _number("SLURM_NTASKS") > 1:
        if "SLURM_NTASKS_PER_NODE" not in os.environ:
            raise InputError("srun needs --ntasks-per-node in addition to --ntasks")
        return LaunchInfo(_number("SLURM_PROCID"), _number("SLURM_NTASKS"), _number("SLURM_NTASKS_PER_NODE"), "srun")
    return LaunchInfo()


def rank() -> int:
    """The rank of this process, even if other launch information is missing; 0 if it is not known."""
    try:
        return launch_info().rank
    except InputError:
        number = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or ""
        return int(number) if number.isdecimal() else 0


def _number(name: str) -> int:
    try:
        return int(os.environ[name])
    except (KeyError, ValueError):
        raise InputError(
            f"the launcher must set the environment variable {name} to a number, but it is {os.environ.get(name)!r}"
        ) from None
