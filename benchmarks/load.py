"""How much slower a training becomes where other programs keep all processors busy.

    python benchmarks/load.py [--model resnet20] [--batch 64] [--seconds 10] [--rounds 3] [--json FILE]

A process trains a small network with one thread per processor. OpenMP's threads wait for each other as they do by
default, or passively, as the command line has them. Each is timed on the machine as it is and beside one busy loop per
processor, in turns; the figures are medians of the rounds. Run it on an idle machine.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

TRAINING = """
import sys, time, torch
from factor_transfer import build_model
model, batch, seconds = build_model(sys.argv[1], 10), int(sys.argv[2]), float(sys.argv[3])
images, labels = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
optimizer = torch.optim.SGD(model.parameters(), 0.01)
def step():
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()
    optimizer.zero_grad()
step()
start, steps = time.perf_counter(), 0
while time.perf_counter() - start < seconds:
    step()
    steps += 1
print(steps * batch / (time.perf_counter() - start))
"""
POLICIES = {"default": None, "passive": "passive"}


def images_per_s(policy: str | None, model: str, batch: int, seconds: float) -> float:
    """The speed of a training in a process of its own."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    if policy is not None:
        environment["OMP_WAIT_POLICY"] = policy
    command = [sys.executable, "-c", TRAINING, model, str(batch), str(seconds)]
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Time all, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    processors = len(os.sched_getaffinity(0))
    speeds: dict[str, dict[str, list[float]]] = {name: {"idle": [], "busy": []} for name in POLICIES}
    for _ in range(given.rounds):
        for name, policy in POLICIES.items():
            speeds[name]["idle"].append(images_per_s(policy, given.model, given.batch, given.seconds))
        loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processors)]
        try:
            for name, policy in POLICIES.items():
                speeds[name]["busy"].append(images_per_s(policy, given.model, given.batch, given.seconds))
        finally:
            for loop in loops:
                loop.kill()
                loop.wait()
    result = {
        "model": given.model,
        "batch": given.batch,
        "processors": processors,
        "images_per_s": {name: {key: median(values) for key, values in each.items()} for name, each in speeds.items()},
    }
    print(f"{given.model}, batch {given.batch}, {processors} processors; median of {given.rounds} rounds")
    for name, each in result["images_per_s"].items():  # type: ignore[attr-defined]
        speed = f"idle {each['idle']:7.1f} images/s  busy {each['busy']:7.1f} images/s"
        print(f"{name:8}  {speed}  {each['idle'] / each['busy']:.1f} times as slow")
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
