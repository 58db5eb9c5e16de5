"""What this machine's convolutions reach: the bound of everything that step.py measures.

    python benchmarks/convolutions.py [--threads 1]

The 3x3 convolutions of ResNet-20's and ResNet-56's three stages at batch 128, forward and both gradients, as a fraction
of this machine's own matrix product; channels first, as a textbook has them, and channels last.
"""

import argparse
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

BATCH, ROUNDS = 128, 25
STAGES = ((16, 32), (32, 16), (64, 8))  # channels, height and width
FORMATS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}


def seconds(call: Callable[[], object]) -> float:
    """The fastest of some rounds, behind one to warm up: what a shared machine reaches when no one disturbs it."""
    call()
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return min(taken)


def times(channels: int, size: int, memory_format: torch.memory_format) -> list[float]:
    """Seconds of the forward pass, the input's gradient and the weights'."""
    image, kernel = (BATCH, channels, size, size), (channels, channels, 3, 3)
    x, weights, gradient = (
        torch.randn(shape).contiguous(memory_format=memory_format) for shape in (image, kernel, image)
    )

    def backward(wanted: list[bool]) -> object:
        options = [1, 1], [1, 1], [1, 1], False, [0, 0], 1
        return torch.ops.aten.convolution_backward(gradient, x, weights, None, *options, wanted)

    return [
        seconds(lambda: torch.conv2d(x, weights, None, 1, 1)),
        seconds(lambda: backward([True, False, False])),
        seconds(lambda: backward([False, True, False])),
    ]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    matrix = torch.randn(2048, 2048)
    peaks = []
    table = Table("channels, size", "memory", "forward", "gradient of input", "gradient of weights")
    for channels, size in STAGES:
        work = 2 * 9 * channels**2 * size**2 * BATCH
        for name, memory_format in FORMATS.items():
            peaks.append(2 * 2048**3 / seconds(lambda: matrix @ matrix))  # each time: a shared machine's speed changes
            fractions = [f"{work / took / peaks[-1]:.2f}" for took in times(channels, size, memory_format)]
            table.add_row(f"{channels}, {size} x {size}", name, *fractions)
    console = Console()
    speed = f"{min(peaks) / 1e9:.0f} to {max(peaks) / 1e9:.0f} GFLOP/s"
    console.print(f"matrix product {speed}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    console.print(table)


if __name__ == "__main__":
    main()
