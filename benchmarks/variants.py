"""The steps that are measured: of a textbook, and ours."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from factor_transfer import Distillation, FactorTransfer, Paraphraser, Supervised, Translator, build_model
from factor_transfer.data import Augment, Batch, Batches, Split
from factor_transfer.distributed.fabric import open_fabric
from factor_transfer.methods import Method, Teacher
from factor_transfer.models import Normalize, macs
from factor_transfer.pipeline.stages.cache_files import Store
from factor_transfer.training.networks.compile import compile_networks
from factor_transfer.training.optim import Optimization

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
IMAGES, SIZE, CLASSES = 2048, 32, 10
TAPS = {"resnet18": "layer4", "resnet34": "layer4", "resnet50": "layer4"}  # of others the last stage is layer3

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
        channels = [int(model.get_submodule("fc").in_features) for model in (teacher, student)]
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
    fabric = open_fabric(pair.device.type, precision)
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
    method, batch = transfer(pair)
    (factor,) = method.targets(batch.images)["factor"]
    store = Store(folder, [factor.shape[1:]], IMAGES, 1)
    store.reserve()
    assert batch.indices is not None
    store.write(0, batch.indices, [factor])
    method.cached = {"factor": store}
    return method, batch._replace(views=torch.zeros_like(batch.labels))


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
