"""Tests that need a GPU: the same training as on a CPU, compiled with CUDA graphs, with cached factors."""

import json
from pathlib import Path

import pytest
import torch

from conftest import TINY, Run
from factor_transfer import Distillation, FactorTransfer, Paraphraser, Translator, build_model
from factor_transfer.data import Augment, Batches, Split
from factor_transfer.distributed.fabric import open_fabric
from factor_transfer.methods import Teacher, trained_state
from factor_transfer.training.networks.compile import compile_networks, set_eager

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def method(device: str) -> Distillation:
    torch.manual_seed(0)
    teacher, student = build_model("resnet14", 4), build_model("resnet8", 4)
    images = torch.rand(16, 3, 16, 16).to(device)
    term = FactorTransfer(Paraphraser(64), Translator(64, 32), "layer3", "layer3", beta=50)
    return Distillation(student, Teacher(teacher.to(device), None, images), {"factor": term}).to(device)


def gradient(one: Distillation, device: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.rand(16, 3, 16, 16, generator=generator), torch.arange(16) % 4
    one.zero_grad()
    one.train()(images.to(device), labels.to(device))["loss"].backward()
    return torch.cat([part.grad.flatten().cpu() for part in one.parameters() if part.grad is not None])


def test_the_gradient_is_that_of_a_cpu() -> None:
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        cpu, gpu = gradient(method("cpu"), "cpu"), gradient(method("cuda"), "cuda")
    assert float((cpu - gpu).norm() / cpu.norm()) < 1e-3


def test_batches_are_those_of_a_cpu() -> None:
    images = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8)
    split = Split(images, torch.arange(40) % 4)
    pairs = [Batches(split, 16, 3, Augment(crop_padding=2, flip=True), device) for device in ("cpu", "cuda")]
    for cpu, gpu in zip(*(batches.epoch(1) for batches in pairs), strict=True):
        assert gpu.images.is_cuda
        assert torch.equal(cpu.images, gpu.images.cpu())
        assert torch.equal(cpu.labels, gpu.labels.cpu())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_networks_are_compiled_with_cuda_graphs(precision: str) -> None:
    one, fabric = method("cuda"), open_fabric("cuda", precision)
    model = fabric.setup_module(one.train())
    before = {key: value.clone() for key, value in trained_state(one).items()}
    split = Split(torch.rand(16, 3, 16, 16), torch.arange(16) % 4)
    batch = next(Batches(split, 16, 0, device="cuda").epoch(0))
    assert compile_networks(fabric, one, batch) is None
    assert all(torch.equal(value, before[key]) for key, value in trained_state(one).items())
    for _ in range(3):
        fabric.backward(model(*batch)["loss"])
    set_eager(one)


def test_a_whole_run(run: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(TINY)
    for name, changes in {
        "plain": ["compile=off"],
        "bf16": ["precision=bf16-mixed", "compile=off", "cache.views=2"],
    }.items():
        done = run("run", recipe, "--work-dir", tmp_path / name, *changes)
        assert done.code == 0, done.err
        assert "on cuda" in done.out
        lines = (tmp_path / name / "student-factor-seed0" / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["loss"] < json.loads(lines[0])["loss"]
        # What was trained on a GPU is tested on a CPU.
        tested = run("test", recipe, tmp_path / name, "device=cpu")
        assert tested.code == 0, tested.err
