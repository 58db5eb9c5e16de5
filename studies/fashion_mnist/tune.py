"""Try settings of the demo's recipe on Fashion-MNIST's training images alone.

    python studies/fashion_mnist/tune.py WORK_DIR [KEY=VALUE ...] --data FOLDER [--methods student,kd] [--seeds 3]

Students are trained on the 6,000 images that come with the package, and scored on 10,000 of the other 54,000 training
images; FOLDER holds the four published files. No test image is looked at. What was tried is in README.md.
"""

import argparse
from pathlib import Path
from statistics import mean, stdev

import torch
from rich.console import Console

from factor_transfer import load_student
from factor_transfer.config.read import read_recipe
from factor_transfer.data import Split
from factor_transfer.data.sets.fashion_mnist import load_fashion_mnist, load_fashion_mnist_small
from factor_transfer.pipeline.artefact import Artefact
from factor_transfer.pipeline.experiment import Experiment
from factor_transfer.pipeline.stages.paraphraser import make_paraphraser
from factor_transfer.pipeline.stages.student import make_student
from factor_transfer.pipeline.stages.teacher import make_teacher

IMAGES = 10_000


def held_out(root: str) -> Split:
    """Training images of Fashion-MNIST that are not among those of the package."""
    whole, part = load_fashion_mnist(root=root).train, load_fashion_mnist_small().train
    known = {image.numpy().tobytes() for image in part.images[:]}
    others = [place for place in range(0, len(whole), 5) if whole.images[place].numpy().tobytes() not in known]
    return whole.subset(torch.tensor(others[:IMAGES]))


def top1(done: Artefact, split: Split) -> float:
    """Top-1 of a finished network in percent."""
    network = load_student(done.folder)
    with torch.no_grad():
        answers = torch.cat([network(images) for images in split.images[:].split(500)]).argmax(1)
    return 100 * (answers == split.labels).float().mean().item()


def main() -> None:
    """Train, score, and print a line for each method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work_dir", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--data", required=True)
    parser.add_argument("--methods", default="student,kd,factor,factor+kd")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    split, recipe = held_out(given.data), read_recipe("fashion-mnist/resnet20-resnet8", given.overrides)
    experiment = Experiment(recipe, given.work_dir, Console(quiet=True), "fashion-mnist/resnet20-resnet8")
    print(f"teacher {top1(make_teacher(experiment), split):.2f}")
    make_paraphraser(experiment)
    alone: list[float] = []
    for method in given.methods.split(","):
        students = [make_student(experiment.with_method(method, seed)) for seed in range(given.seeds)]
        reached = [top1(student, split) for student in students]
        alone = alone or reached
        differences = [own - other for own, other in zip(reached, alone, strict=True)]
        spread = stdev(differences) if given.seeds > 1 else 0.0
        print(f"{method:12} {mean(reached):.2f}  {mean(differences):+.2f} (sd {spread:.2f})", flush=True)


if __name__ == "__main__":
    main()
