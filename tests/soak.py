"""Kill a running pipeline again and again, and see that nothing is lost: not a test of every day, for it takes minutes.

    python tests/soak.py [--kills 50] [--seed 0] [--folder DIR]

A pipeline of all stages, with a factor cache, runs once undisturbed. Others are killed (SIGKILL: nothing is caught or
flushed) at random moments in every stage, in the cache, and in the writing of a checkpoint, and started again each
time, until they are done. The bytes of all weights must be those of the undisturbed one. Last output: docs/soak.txt.
"""

import argparse
import contextlib
import hashlib
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

RECIPE = """
checkpoint.every.minutes = 0.001

[data]
name = "synthetic"
train = 960
validation = 0.25

[augment]
crop_padding = 1
flip = true

[teacher]
model = "resnet8"
epochs = 6
batch_size = 24
schedule = "cosine"

[paraphraser]
epochs = 6
batch_size = 24
learning_rate = 0.01

[student]
model = "resnet8"
args = { width = 8 }
epochs = 8
batch_size = 24
schedule = "step"
milestones = [4]

[cache]
views = 6

[transfer]
method = "factor+kd"
"""
STAGES = ("teacher", "cache", "paraphraser", "student")


def start(recipe: Path, work: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "factor_transfer", "run", str(recipe), "--work-dir", str(work)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def under_way(work: Path, place: str) -> bool:
    """Whether a stage has begun and is not finished, or a file is being written."""
    if place == "writing":
        return bool(list(work.glob("*/.*.ckpt.*")))
    folders = list(work.glob("cache/*")) if place == "cache" else list(work.glob(f"{place}*"))
    records = [folder / "stage.json" for folder in folders]
    return any(record.exists() and b'"finished": false' in record.read_bytes() for record in records)


def finished(work: Path, place: str) -> bool:
    records = [folder / "stage.json" for folder in work.glob("cache/*" if place == "cache" else f"{place}*")]
    wanted = 3 if place == "cache" else 1  # the teacher's features, and the targets of two terms
    return sum(record.exists() and b'"finished": true' in record.read_bytes() for record in records) >= wanted


def kill_at(process: subprocess.Popen[bytes], work: Path, stage: str, kind: str, draw: random.Random) -> bool:
    """Kill at a random moment; whether it came to that.

    Args:
        process: the pipeline.
        work: its work dir.
        stage: the one in question.
        kind: ``"within"`` the stage, in the ``"writing"`` of a checkpoint of it, or ``"anywhere"``.
        draw: what is random.
    """
    if kind == "anywhere":
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(2.0, 14.0))  # from the first imports on
    else:
        while process.poll() is None and not under_way(work, stage):
            time.sleep(0.005)
        time.sleep(draw.uniform(0.0, 0.3 if stage == "cache" else 1.5))
        while kind == "writing" and process.poll() is None and not under_way(work, kind):
            time.sleep(0.0002)
    if process.poll() is not None:
        return False
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return True


def found_at(work: Path) -> str:
    """Where it was, by what it left."""
    stage = next((name for name in STAGES if under_way(work, name)), "between")
    return f"{stage}, a checkpoint half written" if under_way(work, "writing") else stage


def sums(work: Path) -> dict[str, str]:
    files = sorted(work.glob("*/*.safetensors"))
    return {str(path.relative_to(work)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--kills", type=int, default=50)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--folder", type=Path)
    given = arguments.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    folder = given.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "soak.toml"
    recipe.write_text(RECIPE)
    draw = random.Random(given.seed)
    began = time.monotonic()
    through = start(recipe, folder / "undisturbed")
    _, errors = through.communicate()
    if through.returncode:
        sys.exit(f"the undisturbed run failed: {errors.decode()}")
    expected = sums(folder / "undisturbed")
    print(f"undisturbed: {time.monotonic() - began:.0f} s, {len(expected)} files of weights", flush=True)

    kills: Counter[str] = Counter()
    pipelines, starts, wrong = 0, 0, 0
    while sum(kills.values()) < given.kills:
        work = folder / f"killed-{pipelines}"
        due = {stage: draw.randint(1, 3) for stage in STAGES}
        while True:
            process = start(recipe, work)
            starts += 1
            stage = next((stage for stage in STAGES if due[stage] and not finished(work, stage)), None)
            kind = draw.choice(["within", "within", "writing", "anywhere"])
            if stage and sum(kills.values()) < given.kills and kill_at(process, work, stage, kind, draw):
                kills[found_at(work)] += 1
                due[stage] -= 1
                continue
            _, errors = process.communicate()
            if process.returncode:
                sys.exit(f"pipeline {pipelines} failed with code {process.returncode}: {errors.decode()}")
            break
        same = sums(work) == expected
        wrong += not same
        print(f"pipeline {pipelines}: {'the same bytes' if same else 'OTHER BYTES'}", flush=True)
        pipelines += 1
    print(f"\n{sum(kills.values())} kills in {pipelines} pipelines, {starts} starts, {time.monotonic() - began:.0f} s")
    for place, count in sorted(kills.items()):
        print(f"  {count:3} in {place}")
    print(f"seed {given.seed}; {platform.platform()}, Python {platform.python_version()}")
    print("all weights equal the undisturbed run's, byte for byte" if not wrong else f"{wrong} pipelines DIFFER")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
