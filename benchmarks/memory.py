"""How much memory a step takes, above what is there before it."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch


def peak_mb(step: Callable[[], object], device: torch.device) -> float:
    """The most that a step takes, MB; on a CPU of resident memory, as Linux counts it.

    Args:
        step: has been run before, so that what it keeps for good is there already.
        device: where it runs.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system, or it would not be counted again
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts from here
    step()
    return (_status("VmHWM") - before) / 1e3


def _status(key: str) -> float:
    """A line of /proc/self/status, kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
