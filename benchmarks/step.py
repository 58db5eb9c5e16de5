"""How fast a step of distillation is, and how fast it could be: variants in one process, round by round.

    python benchmarks/step.py [--pair resnet56-resnet20] [--threads N] [--batch 128] [--rounds 7] [--json FILE]

`textbook_student` and `textbook_transfer` are written here, as a script would: channels first, eager, the optimiser as
it comes; the transfer builds a graph through the teacher and has two optimisers, as the authors' script. The others
are this package's, by its own loop's means. All are given images on the device; what it takes to make a batch of them
is measured apart, as `data`. Ratios within one run mean something; figures of two runs do not compare.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from memory import peak_mb
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from factor_transfer import Distillation, FactorTransfer, Paraphraser, Supervised, Translator, build_model
from factor_transfer.compiling import compile_networks
from factor_transfer.data import Augment, Batch, Batches, Split
from factor_transfer.methods import Method, Teacher
from factor_transfer.models import Normalize, macs
from factor_transfer.optimization import Optimization

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
IMAGES, SIZE, CLASSES = 2048, 32, 10
TAPS = {"resnet18": "layer4", "resnet34": "layer4", "resnet50": "layer4"}  # of others the last stage is layer3
RATIOS = [
    ("transfer", "textbook_transfer"),
    ("transfer_cached", "textbook_transfer"),
    ("transfer_cached", "textbook_student"),
    ("student", "textbook_student"),
]

Step = Callable[[], None]


class Pair:
    """Networks of one size, made anew for each variant from the same seed."""

    def __init__(self, names: str, device: torch.device, batch: int) -> None:
        self.teacher_name, self.student_name = names.split("-")
        self.device = device
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (IMAGES, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
        labels = torch.randint(0, CLASSES, (IMAGES,), generator=generator)
        self.split = Split(images, labels)
        self.augment = Augment(crop_padding=4, flip=True)
        self.batches = Batches(self.split, batch, 0, self.augment, device)
        self.batch: Batch = next(self.batches.epoch(0))
        self.normalize = Normalize(MEAN, STD).to(device)

    def networks(self) -> tuple[nn.Module, nn.Module, Paraphraser, Translator]:
        """Teacher, student, paraphraser, translator."""
        torch.manual_seed(0)
        teacher, student = build_model(self.teacher_name, CLASSES), build_model(self.student_name, CLASSES)
        channels = [
            int(model.get_submodule("fc").in_features)  # type: ignore[arg-type]
            for model in (teacher, student)
        ]
        paraphraser = Paraphraser(channels[0])
        translator = Translator(channels[1], paraphraser.factor_channels)
        return teacher.to(self.device), student.to(self.device), paraphraser.to(self.device), translator.to(self.device)

    @property
    def taps(self) -> tuple[str, str]:
        """Of teacher and student."""
        return TAPS.get(self.teacher_name, "layer3"), TAPS.get(self.student_name, "layer3")


def textbook_student(pair: Pair) -> Step:
    """Plain training."""
    _, student, _, _ = pair.networks()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    images = pair.normalize(pair.batch.images).contiguous()

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(student(images), pair.batch.labels).backward()
        optimizer.step()

    return step


def textbook_transfer(pair: Pair) -> Step:
    """Factor Transfer's step as the authors' script has it."""
    teacher, student, paraphraser, translator = pair.networks()
    teacher.eval()
    paraphraser.eval()
    optimizers = [
        torch.optim.SGD(part.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4) for part in (student, translator)
    ]
    images = pair.normalize(pair.batch.images).contiguous()
    features: dict[str, Tensor] = {}
    for name, model, tap in zip(("teacher", "student"), (teacher, student), pair.taps, strict=True):
        model.get_submodule(tap).register_forward_hook(lambda m, a, output, name=name: features.update({name: output}))

    def unit(factor: Tensor) -> Tensor:
        return F.normalize(factor.flatten(1))

    def step() -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
        teacher(images)
        logits = student(images)
        factor = paraphraser.encode(features["teacher"]).detach()
        distance = (unit(translator(features["student"])) - unit(factor)).abs().mean()
        (F.cross_entropy(logits, pair.batch.labels) + 500 * distance).backward()
        for optimizer in optimizers:
            optimizer.step()

    return step


def ours(pair: Pair, method: Method, batch: Batch, precision: str, compiled: bool) -> Step:
    """A step of this package's loop."""
    fabric = Fabric(accelerator=pair.device.type, devices=1, precision=precision)  # type: ignore[arg-type]
    parameters = [parameter for parameter in method.to(pair.device).parameters() if parameter.requires_grad]
    bare, scheduler = Optimization().build(parameters, len(pair.batches), 100)
    model, optimizer = fabric.setup(method, bare)
    model.train()
    why = compile_networks(fabric, method, batch) if compiled else None
    if why:
        raise SystemExit(f"not compiled: {why}")

    def step() -> None:
        losses = model(*batch)
        fabric.backward(losses["loss"])
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()

    return step


def student(pair: Pair) -> tuple[Method, Batch]:
    """Ours, the student alone."""
    return Supervised(pair.networks()[1], pair.normalize), pair.batch


def transfer(pair: Pair) -> tuple[Distillation, Batch]:
    """Ours, nothing cached."""
    teacher, student, paraphraser, translator = pair.networks()
    term = FactorTransfer(paraphraser, translator, *pair.taps)
    asked = Teacher(teacher, pair.normalize, pair.split.images[:64].to(pair.device))
    return Distillation(student, asked, {"factor": term}, pair.normalize), pair.batch


def transfer_cached(pair: Pair, folder: Path) -> tuple[Distillation, Batch]:
    """Ours, from the factor cache: one view of these images, read from a memory-mapped file as in a run."""
    from factor_transfer.store import Store

    method, batch = transfer(pair)
    (factor,) = method.targets(batch.images)["factor"]
    store = Store(folder, [factor.shape[1:]], IMAGES, 1)
    store.reserve()
    assert batch.indices is not None
    store.write(0, batch.indices, [factor])
    method.kept = {"factor": store}
    return method, batch._replace(views=torch.zeros_like(batch.labels))


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


def arithmetic(pair: Pair, batch: int) -> dict[str, float]:
    """GFLOP of a step of each kind: a backward pass costs two forward ones."""
    teacher, student, paraphraser, translator = pair.networks()
    image = pair.normalize(pair.batch.images[:1])
    found: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(tap).register_forward_hook(lambda m, a, output, key=key: found.update({key: output}))
        for key, model, tap in zip(("T", "S"), (teacher, student), pair.taps, strict=True)
    ]
    alone, frozen = macs(student, image), macs(teacher, image)
    for handle in handles:
        handle.remove()
    translated = macs(translator, found["S"])
    encoded = macs(paraphraser.encoder, found["T"])
    gflop = 2 * batch / 1e9
    plain, cached = gflop * 3 * alone, gflop * 3 * (alone + translated)
    whole = cached + gflop * (frozen + encoded)
    return {
        "textbook_student": plain,
        "textbook_transfer": whole,
        "transfer": whole,
        "transfer_cached": cached,
        "student": plain,
    }


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
        data.append(seconds(lambda epoch=epoch: pair.normalize(next(epoch).images), pair.device))  # type: ignore[misc]
    memory = {name: peak_mb(step, pair.device) for name, step in variants.items()}
    return times, statistics.median(products), data, memory


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default="resnet56-resnet20", help="TEACHER-STUDENT, of this package's ResNets")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=None, help="of the CPU; all, if left out")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default=None, help="32-true, or bf16-mixed, which is the default on a GPU")
    parser.add_argument("--compile", choices=["on", "off"], default="on")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    device = torch.device(asked.device)
    precision = asked.precision or ("bf16-mixed" if device.type == "cuda" else "32-true")
    pair = Pair(asked.pair, device, asked.batch)
    variants: dict[str, Step] = {
        "textbook_student": textbook_student(pair),
        "textbook_transfer": textbook_transfer(pair),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, (method, batch) in {
            "transfer": transfer(pair),
            "transfer_cached": transfer_cached(pair, Path(folder)),
            "student": student(pair),
        }.items():
            variants[name] = ours(pair, method, batch, precision, asked.compile == "on")
        times, peak, data, memory = measure(pair, variants, asked.rounds, asked.batch)
    work = arithmetic(pair, asked.batch)
    typical = {name: statistics.median(values) for name, values in times.items()}
    result = {
        "pair": asked.pair,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "batch": asked.batch,
        "precision": precision,
        "compile": asked.compile,
        "rounds": asked.rounds,
        "torch": torch.__version__,
        "peak_gflops": peak,
        "images_per_s": {name: asked.batch / value for name, value in typical.items()},
        "spread": {name: [asked.batch / max(values), asked.batch / min(values)] for name, values in times.items()},
        "fraction_of_peak": {name: work[name] / value / peak for name, value in typical.items()},
        "peak_memory_mb": memory,
        "data_share": statistics.median(data) / typical["transfer"],
        "ratios": {f"{one} / {other}": typical[other] / typical[one] for one, other in RATIOS},
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
    memory = result["peak_memory_mb"]
    for name, ratio in result["ratios"].items():
        console.print(f"{name}  {ratio:.2f}", highlight=False)
    console.print(f"data path / step of transfer  {result['data_share']:.1%}", highlight=False)
    console.print(
        f"memory, transfer / textbook_transfer  {memory['transfer'] / memory['textbook_transfer']:.2f}", highlight=False
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
