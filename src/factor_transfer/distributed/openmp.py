"""The way in which the threads of a process wait for each other."""

import os
import sys


def wait_passively() -> None:
    """Have the threads of PyTorch's operators sleep while they wait for each other, unless the environment sets it.

    By default, a waiting OpenMP thread keeps its processor busy. If other programs need the processors, too, this
    can prevent the thread that it waits for from running, and a step of a small network takes several times as long
    (see benchmarks/README.md). OpenMP reads the setting when PyTorch is imported, so a later call has no effect.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
