"""The precision in which a device computes fastest."""

from pathlib import Path

import torch

FULL, HALF = "32-true", "bf16-mixed"

# Flags of processors that multiply matrices of bfloat16 in hardware. Others emulate it, slower than float32.
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}


def fast_precision(device: torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """``"bf16-mixed"`` if a device computes faster in bfloat16, ``"32-true"`` otherwise.

    Args:
        device: the device of the training.
        cpuinfo: the file in which Linux lists the processor's features. If it does not exist, the result is float32.
    """
    if device.type == "cuda":
        return HALF if torch.cuda.is_bf16_supported(including_emulation=False) else FULL
    if device.type != "cpu":
        return FULL
    try:
        flags = cpuinfo.read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return FULL
    return HALF if _BFLOAT16_FLAGS & set(flags) else FULL
