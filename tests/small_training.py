"""A small training of the loop, without a recipe: what several test files train."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from rich.console import Console
from torch import nn

from factor_transfer import Supervised, build_model
from factor_transfer.data import Augment, Batches, Split
from factor_transfer.distributed.fabric import open_fabric
from factor_transfer.models import Normalize
from factor_transfer.training.log import RunLog
from factor_transfer.training.loop import fit
from factor_transfer.training.optim import Optimization
from factor_transfer.training.trainer import Outcome, Selection, Trainer

GENERATOR = torch.Generator().manual_seed(0)
LABELS = torch.arange(40) % 4
IMAGES = (torch.randint(0, 64, (40, 3, 8, 8), generator=GENERATOR) + 48 * LABELS.view(-1, 1, 1, 1)).to(torch.uint8)


class Dropped(nn.Module):
    """A network with dropout, whose random numbers must come back on resuming."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.dropout = build_model("resnet8", 4, width=2), nn.Dropout(0.3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(self.dropout(images))


def train(folder: Path, epochs: int = 4, fabric: Fabric | None = None, **changes: Any) -> Outcome:
    torch.manual_seed(0)
    fabric = fabric or open_fabric("cpu", "32-true")
    model = changes.pop("network", Dropped)()
    course = {name: changes.pop(name) for name in ("accumulate", "interval") if name in changes}
    figures: Iterator[float] = iter(changes.pop("validation", [50.0, 70.0, 70.0, 60.0, 10.0, 10.0]))
    settings: dict[str, Any] = {
        "optimization": Optimization(learning_rate=0.05, schedule="cosine"),
        "validate": lambda: {"top1": next(figures)},
        "selection": Selection("top1", highest=True, keep="last"),
        "log": RunLog(Console(quiet=True), "student", folder / "metrics.jsonl"),
    }
    batches = Batches(Split(IMAGES, LABELS), 16, 0, Augment(crop_padding=1, flip=True), fabric.device)
    pupil = Trainer(
        fabric,
        Supervised(model, Normalize((0.5,) * 3, (0.25,) * 3)),
        model,
        epochs=epochs,
        steps=len(batches),
        checkpoint=folder / "last.ckpt",
        **{**settings, **changes},
    )
    fit([pupil], batches, **course)
    return pupil.outcome()


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
