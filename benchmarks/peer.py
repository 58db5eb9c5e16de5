"""Factor Transfer's step by torchdistill, from its installed package, beside this package's, in turns.

torchdistill gets an environment of its own, which borrows this one's PyTorch:

    python -m venv --without-pip ENV
    python -c "import site; print(site.getsitepackages()[0])" > ENV/lib/python3.11/site-packages/borrowed.pth
    python -m pip install --no-deps --target ENV/lib/python3.11/site-packages torchdistill pyyaml cython
    PYTHONPATH=src ENV/bin/python benchmarks/peer.py [--pair resnet56-resnet20] [--threads 1] [--rounds 9] [--json FILE]

Its step is the one of its example script: its distillation box with the networks, loss and optimiser that a
configuration describes. It has the same networks, images and batch as the variants of `step.py`. Ratios within one run
mean something.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import variants as these
from variants import Pair, Step


def torchdistill_step(pair: Pair) -> Step:
    """The step of torchdistill's distillation box."""
    operators = torch.library.Library("torchvision", "FRAGMENT")
    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # it was built for another torch: its missing operators are declared, and are not called
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from torchdistill.core.distillation import get_distillation_box

    logging.disable(logging.INFO)
    teacher, student, paraphraser, _ = pair.networks()
    channels = [int(model.get_submodule("fc").in_features) for model in (teacher, student)]
    paths = f"teacher_model.{pair.taps[0]}", f"student_model.{pair.taps[1]}"
    label = {"input": {"is_from_teacher": False, "module_path": ".", "io": "output"}, "target": {"uses_label": True}}
    config: dict[str, Any] = {
        "num_epochs": 1,
        "teacher": {
            "forward_proc": "forward_batch_only",
            "auxiliary_model_wrapper": {
                "key": "Teacher4FactorTransfer",
                "kwargs": {
                    "minimal": None,
                    "input_module_path": paths[0],
                    "paraphraser_kwargs": {"k": 0.5, "num_input_channels": channels[0]},
                    "paraphraser_ckpt": "",
                    "uses_decoder": False,
                },
            },
            "forward_hook": {"output": [paths[0], "paraphraser"]},
            "requires_grad": False,
        },
        "student": {
            "forward_proc": "forward_batch_only",
            "auxiliary_model_wrapper": {
                "key": "Student4FactorTransfer",
                "kwargs": {
                    "input_module_path": paths[1],
                    "translator_kwargs": {
                        "num_input_channels": channels[1],
                        "num_output_channels": paraphraser.factor_channels,
                    },
                },
            },
            "forward_hook": {"output": [paths[1], "translator"]},
        },
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {
                "sub_terms": {
                    "ce": {
                        "criterion": {"key": "CrossEntropyLoss", "kwargs": {}},
                        "criterion_wrapper": {"key": "SimpleLossWrapper", "kwargs": label},
                        "weight": 1.0,
                    },
                    "ft": {"criterion": {"key": "FTLoss", "kwargs": {"p": 1}}, "weight": 500.0},
                }
            },
        },
        "optimizer": {"key": "SGD", "kwargs": {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}},
    }
    box = get_distillation_box(teacher, student, {}, config, pair.device, None, False, 1)
    box.teacher_model.eval()
    box.student_model.train()
    images = pair.normalize(pair.batch.images).contiguous()

    def step() -> None:
        loss = box.forward_process(images, pair.batch.labels, {})
        box.post_forward_process(loss=loss)

    return step


def main() -> None:
    """Time all, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default="resnet56-resnet20")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", choices=["on", "off"], default="off")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    pair, compiled = Pair(given.pair, torch.device("cpu"), given.batch), given.compile == "on"
    with tempfile.TemporaryDirectory() as folder:
        variants: dict[str, Step] = {"torchdistill": torchdistill_step(pair)}
        for precision, suffix in (("32-true", ""), ("bf16-mixed", "_bf16")):
            cached = these.transfer_cached(pair, Path(folder, precision))
            variants[f"transfer{suffix}"] = these.ours(pair, *these.transfer(pair), precision, compiled)
            variants[f"transfer_cached{suffix}"] = these.ours(pair, *cached, precision, compiled)
        times: dict[str, list[float]] = {name: [] for name in variants}
        for number in range(given.rounds + 2):  # two rounds are a warm-up
            for name, step in variants.items():
                began = time.perf_counter()
                step()
                if number > 1:
                    times[name].append(time.perf_counter() - began)
    speeds = {name: given.batch / statistics.median(values) for name, values in times.items()}
    print(f"{given.pair}, batch {given.batch}, {given.threads} threads, median of {given.rounds} rounds")
    for name, speed in speeds.items():
        print(f"{name:22} {speed:7.1f} images/s  {speed / speeds['torchdistill']:.2f} times as fast as torchdistill")
    if given.json:
        found = {"pair": given.pair, "batch": given.batch, "threads": given.threads, "rounds": given.rounds}
        given.json.write_text(json.dumps({**found, "images_per_s": speeds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
