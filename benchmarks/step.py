"""How fast a step of distillation is, and how fast it could be: variants in one process, round by round.

    python benchmarks/step.py [--pair resnet56-resnet20] [--threads N] [--batch 128] [--rounds 7] [--json FILE]
                              [--precision 32-true bf16-mixed] [--processes 1 2]

`textbook_student` and `textbook_transfer` are written here, as a script would: channels first, eager, the optimiser as
it comes; the transfer builds a graph through the teacher and has two optimisers, as the authors' script. The others
are this package's, by its own loop's means. All are given images on the device; what it takes to make a batch of them
is measured apart, as `data`. Ratios within one run mean something; figures of two runs do not compare.

With two precisions, this package's variants are measured in both; those in the second have its name. With
`--processes`, each of them also runs in that many processes at the same time, which have one thread each, and the
images of all processes are counted.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import variants as these
from memory import peak_mb
from rich.console import Console
from rich.table import Table
from variants import Pair, Step

RATIOS = [
    ("transfer", "textbook_transfer"),
    ("transfer_cached", "textbook_transfer"),
    ("transfer_cached", "textbook_student"),
    ("student", "textbook_student"),
]
OURS = "transfer", "transfer_cached", "student"
SECONDS = 5.0  # that each process of several is timed for


def peak_gflops(device: torch.device) -> Callable[[], float]:
    """This machine's own large float32 matrix product."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(size, size, device=device), torch.randn(size, size, device=device)

    def measure() -> float:
        return 2 * size**3 / seconds(lambda: a @ b, device) / 1e9

    return measure


def seconds(step: Callable[[], object], device: torch.device) -> float:
    """How long it takes."""
    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure(
    pair: Pair, variants: dict[str, Step], rounds: int, batch: int
) -> tuple[dict[str, list[float]], float, list[float], dict[str, float]]:
    """Seconds of each variant's steps, GFLOP/s of the matrix product, seconds to make a batch, MB of a step."""
    matrix = peak_gflops(pair.device)
    for step in variants.values():
        for _ in range(3):
            seconds(step, pair.device)
    times: dict[str, list[float]] = {name: [] for name in variants}
    products, data = [], []
    for _ in range(rounds):
        products.append(matrix())
        for name, step in variants.items():
            times[name].append(seconds(step, pair.device))
        epoch = pair.batches.epoch(0)
        next(epoch)  # which draws what a whole epoch needs
        data.append(seconds(lambda epoch=epoch: pair.normalize(next(epoch).images), pair.device))
    memory = {name: peak_mb(step, pair.device) for name, step in variants.items()}
    return times, statistics.median(products), data, memory


def our_variants(
    pair: Pair, names: list[str], precision: str, compiled: bool, folder: str
) -> Iterator[tuple[str, Step]]:
    """This package's variants, in one precision."""
    for name in names:
        made = these.transfer_cached(pair, Path(folder, precision)) if name == "transfer_cached" else None
        yield name, these.ours(pair, *(made or getattr(these, name)(pair)), precision, compiled)


def run_beside_others(pair: Pair, name: str, precision: str, compiled: bool) -> None:
    """One of several processes: it says when it is ready, waits for the others, and prints its images per second."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        ((_, step),) = our_variants(pair, [name], precision, compiled, folder)
        for _ in range(3):
            step()
        print("ready", flush=True)
        sys.stdin.readline()
        began, steps = time.perf_counter(), 0
        while time.perf_counter() - began < SECONDS:
            step()
            steps += 1
        print(steps * len(pair.batch.labels) / (time.perf_counter() - began), flush=True)


def in_processes(count: int, name: str, precision: str, asked: argparse.Namespace) -> float:
    """Images per second of a variant in several processes together."""
    words = ["--pair", asked.pair, "--batch", str(asked.batch), "--device", asked.device, "--compile", asked.compile]
    command = [sys.executable, __file__, *words, "--precision", precision, "--beside-others", name]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return sum(float(process.communicate()[0]) for process in processes)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default="resnet56-resnet20", help="TEACHER-STUDENT, of this package's ResNets")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=None, help="of the CPU; all, if left out")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--precision", nargs="+", default=None, help="32-true, or bf16-mixed, which is the default on a GPU; or both"
    )
    parser.add_argument("--processes", nargs="+", type=int, default=[], metavar="N")
    parser.add_argument("--beside-others", choices=OURS, help=argparse.SUPPRESS)
    parser.add_argument("--compile", choices=["on", "off"], default="on")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    device = torch.device(asked.device)
    precisions = asked.precision or ["bf16-mixed" if device.type == "cuda" else "32-true"]
    compiled = asked.compile == "on"
    pair = Pair(asked.pair, device, asked.batch)
    if asked.beside_others:
        run_beside_others(pair, asked.beside_others, precisions[0], compiled)
        return
    variants: dict[str, Step] = {
        "textbook_student": these.textbook_student(pair),
        "textbook_transfer": these.textbook_transfer(pair),
    }
    with tempfile.TemporaryDirectory() as folder:
        for precision in precisions:
            for name, step in our_variants(pair, list(OURS), precision, compiled, folder):
                variants[_labelled(name, precision, precisions)] = step
        times, peak, data, memory = measure(pair, variants, asked.rounds, asked.batch)
    beside = {
        f"{_labelled(name, precision, precisions)}, {count}": in_processes(count, name, precision, asked)
        for precision in precisions
        for name in OURS
        for count in asked.processes
    }
    work = these.arithmetic(pair, asked.batch)
    typical = {name: statistics.median(values) for name, values in times.items()}
    result = {
        "pair": asked.pair,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "batch": asked.batch,
        "precision": ", ".join(precisions),
        "compile": asked.compile,
        "rounds": asked.rounds,
        "torch": torch.__version__,
        "peak_gflops": peak,
        "images_per_s": {name: asked.batch / value for name, value in typical.items()},
        "spread": {name: [asked.batch / max(values), asked.batch / min(values)] for name, values in times.items()},
        "fraction_of_peak": {name: work[_plain(name)] / value / peak for name, value in typical.items()},
        "peak_memory_mb": memory,
        "data_share": statistics.median(data) / typical["transfer"],
        "ratios": {
            f"{name} / {other}": typical[other] / typical[name]
            for one, other in RATIOS
            for name in typical
            if _plain(name) == one
        },
        **({"images_per_s_of_processes": beside} if beside else {}),
    }
    report(result)
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=2) + "\n")


def report(result: dict[str, Any]) -> None:
    """Show it."""
    console = Console()
    table = Table("variant", "images/s", "slowest, fastest", "of peak", "memory of a step")
    for name, speed in result["images_per_s"].items():
        low, high = result["spread"][name]
        fraction, memory = result["fraction_of_peak"][name], result["peak_memory_mb"][name]
        table.add_row(name, f"{speed:,.0f}", f"{low:,.0f}, {high:,.0f}", f"{fraction:.2f}", f"{memory:,.0f} MB")
    console.print(
        f"{result['pair']}, batch {result['batch']}, {result['precision']}, {result['device']}, {result['threads']} "
        f"threads, torch {result['torch']}; matrix product {result['peak_gflops']:,.0f} GFLOP/s; median of "
        f"{result['rounds']} rounds",
        highlight=False,
    )
    console.print(table)
    for name, speed in result.get("images_per_s_of_processes", {}).items():
        console.print(f"{name} process(es) of one thread  {speed:,.0f} images/s", highlight=False)
    memory = result["peak_memory_mb"]
    for name, ratio in result["ratios"].items():
        console.print(f"{name}  {ratio:.2f}", highlight=False)
    console.print(f"data path / step of transfer  {result['data_share']:.1%}", highlight=False)
    console.print(
        f"memory, transfer / textbook_transfer  {memory['transfer'] / memory['textbook_transfer']:.2f}", highlight=False
    )


def _labelled(name: str, precision: str, precisions: list[str]) -> str:
    """The name of a variant's row: with its precision, if that is not the first one."""
    return name if precision == precisions[0] else f"{name}_{precision.partition('-')[0]}"


def _plain(name: str) -> str:
    """The variant of a row."""
    return name.removesuffix("_bf16").removesuffix("_32")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
