"""The section of the page on how many images of a batch have labels, from comparisons on validation images."""

import csv
from pathlib import Path

from factor_transfer.report.confidence import estimate
from factor_transfer.report.names import name_of

RECORDS = Path(__file__).parent / "records" / "shares"

_METHODS = ("factor", "factor+kd")
_HEAD = """## How many images of a batch have labels

By default, labelled and unlabelled images have the shares of a batch that they have of all images, but at least 8
images have labels. `student.unlabelled_share = 0.5` makes half of them labelled ones. The table has top-1 in percent on
6,000 validation images of Fashion-MNIST, mean and 95 % interval. The teacher has learned from all labels; students take
1,600 to 1,800 steps. AMD EPYC with AVX2, float32.

    weights=studies/unlabelled/teachers/all-labels/weights.safetensors
    teacher='{model="resnet20", args={width=8}, tap="layer3", weights="'$weights'"}'
    factor-transfer compare studies/unlabelled/fashion-mnist.toml teacher="$teacher" data.root=FOLDER \\
        data.validation=0.1 data.labelled=0.05 student.epochs=4 compile=off --methods factor,factor+kd --seeds 2

This is the row of 2,700 labels and 8 images per batch. The others have `data.labelled=0.01`, or
`student.unlabelled_share=0.5 student.epochs=2`. *Factor Transfer*, whose classifier learns from labelled images alone,
has higher means with half. For *Factor Transfer + KD*, it makes no measurable difference.

"""


def section() -> str:
    """The section with its table; each file has the name ``<labels>-<labelled images per batch>.csv``."""
    found = sorted(RECORDS.glob("*.csv"), key=lambda path: [int(number) for number in path.stem.split("-")])
    columns = ["labels", "labelled images per batch of 128", "seeds", *map(name_of, _METHODS)]
    lines = [f"| {' | '.join(columns)} |", f"|{' ---: |' * len(columns)}", *map(_row, found)]
    return _HEAD + "".join(f"{line}\n" for line in lines)


def _row(path: Path) -> str:
    with path.open(encoding="utf-8", newline="") as file:
        runs = [run for run in csv.DictReader(file) if run["row"] == "run"]
    reached = {
        method: [float(run["validation_top1"]) for run in runs if run["method"] == method] for method in _METHODS
    }
    labels, per_batch = path.stem.split("-")
    figures = [f"{estimate(values):.2f}" for values in reached.values()]
    return f"| {int(labels):,} | {per_batch} | {len(reached['factor'])} | {' | '.join(figures)} |"
