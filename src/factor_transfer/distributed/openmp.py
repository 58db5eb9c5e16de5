"""How the threads of a process wait for each other."""

import os
import sys


def wait_passively() -> None:
    """Have the threads of PyTorch's operators sleep while they wait for each other, unless the environment says more.

    By default a waiting thread of OpenMP keeps its processor busy. Where other programs need the processors, too, that
    keeps the thread it waits for from running: a step of a small network then takes ten times as long
    (benchmarks/README.md). OpenMP reads the setting when PyTorch is imported, so a later call has no effect.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
