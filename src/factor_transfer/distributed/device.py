"""The device of a training."""

import torch


def find_device(device: str) -> torch.device:
    """The device that a recipe's name stands for on this machine; ``"auto"`` is a GPU where there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return torch.device(device)
