"""Weights from elsewhere, by files made here that are named as each source names its layers."""

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from conftest import Run, refused
from factor_transfer import build_model
from factor_transfer.checkpoint import State, load_into, read_weights
from factor_transfer.errors import InputError
from factor_transfer.foreign import adapt
from factor_transfer.methods.paraphraser import Paraphraser


def resnet() -> nn.Module:
    model = build_model("resnet8", 10, width=4)
    for index, value in enumerate(model.state_dict().values()):  # no two tensors alike, not even fresh batch norms'
        value.copy_(torch.full_like(value, index) if value.dim() < 2 else torch.randn_like(value))
    return model


def as_mmpretrain(key: str) -> str:
    return f"head.{key}" if key.startswith("fc.") else f"backbone.{key}"


def as_pytorch_cifar(key: str) -> str:
    return key.replace("downsample", "shortcut").replace("fc.", "linear.")


RENAMED = {"mmpretrain": as_mmpretrain, "pytorch-cifar": as_pytorch_cifar}


def load(state: State, module: nn.Module) -> list[str]:
    named, report = adapt(state, module)
    load_into(module, named, Path("file.pth"))
    return report


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("source", RENAMED)
def test_names_of_others_are_turned_into_ours(source: str) -> None:
    state, model = resnet().state_dict(), resnet()
    renamed = {RENAMED[source](key): value for key, value in state.items()}
    assert load(renamed, model) == [f"named as in {source}: {len(state)} of {len(state)} tensors matched"]
    assert same(model.state_dict(), state)


@pytest.mark.parametrize("make", [resnet, lambda: build_model("resnet50", 5, width=4), lambda: Paraphraser(4)])
def test_our_own_names_stay(make: Callable[[], nn.Module]) -> None:
    """And so those of torchvision, timm and RepDistiller, which are the same."""
    state, module = make().state_dict(), make()
    assert load(dict(state), module) == []
    assert same(module.state_dict(), state)


def test_any_module_takes_its_own_weights() -> None:
    module = nn.ModuleDict({"backbone": nn.Linear(2, 3), "shortcut": nn.Conv2d(1, 1, 1), "linear": nn.Linear(3, 1)})
    assert load(dict(module.state_dict()), module) == []


class TheAuthors(nn.Module):
    """The authors' paraphraser, written anew; with batch norms where their code has them commented out."""

    def __init__(self, m: int, z: int, batch_norm: bool) -> None:
        super().__init__()
        for number, (before, after) in enumerate([(m, m), (m, z), (z, z)]):
            self.add_module(f"conv{number}", nn.Conv2d(before, after, 3, padding=1))
            self.add_module(f"bn{number}", nn.BatchNorm2d(after) if batch_norm else None)
        for number, (before, after) in enumerate([(z, z), (z, m), (m, m)]):
            self.add_module(f"deconv{number}", nn.ConvTranspose2d(before, after, 3, padding=1))
            self.add_module(f"bn{number}_de", nn.BatchNorm2d(after) if batch_norm else None)

    def run(self, x: Tensor, layers: str, norms: str) -> Tensor:
        for number in range(3):
            x = getattr(self, layers.format(number))(x)
            norm = getattr(self, norms.format(number))
            x = F.leaky_relu(x if norm is None else norm(x), 0.1)
        return x

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        factor = self.run(x, "conv{}", "bn{}")
        return factor, self.run(factor, "deconv{}", "bn{}_de")


class RepDistillers(nn.Module):
    """RepDistiller's, written anew: an empty module is where the batch norm is left out."""

    def __init__(self, m: int, z: int, batch_norm: bool) -> None:
        super().__init__()
        for name, layer, widths in (
            ("encoder", nn.Conv2d, [m, m, z, z]),
            ("decoder", nn.ConvTranspose2d, [z, z, m, m]),
        ):
            modules: list[nn.Module] = []
            for before, after in pairwise(widths):
                norm = nn.BatchNorm2d(after) if batch_norm else nn.Sequential()
                modules += [layer(before, after, 3, 1, 1), norm, nn.LeakyReLU(0.1)]
            self.add_module(name, nn.Sequential(*modules))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        factor = self.get_submodule("encoder")(x)
        return factor, self.get_submodule("decoder")(factor)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("make", [TheAuthors, RepDistillers])
def test_paraphrasers_of_others_compute_the_same_here(make: type[nn.Module], batch_norm: bool) -> None:
    torch.manual_seed(0)
    theirs, ours = make(6, 3, batch_norm), Paraphraser(6, rate=0.5, batch_norm=batch_norm)
    for _ in range(3):
        theirs(torch.randn(4, 6, 5, 5) + 1)  # so that batch norms have seen something
    report = load(dict(theirs.state_dict()), ours)
    feature = torch.randn(2, 6, 5, 5)
    theirs.eval(), ours.eval()
    factor, rebuilt = theirs(feature)
    torch.testing.assert_close(ours.encode(feature), factor, rtol=0, atol=0)
    torch.testing.assert_close(ours.decode(factor), rebuilt, rtol=0, atol=0)
    own_names = make is RepDistillers and batch_norm
    assert len(report) == (0 if own_names else 1)
    assert own_names or report[0].endswith(
        f": {len(theirs.state_dict())} of {len(theirs.state_dict())} tensors matched"
    )


def test_a_paraphraser_with_batch_norm_is_none_without() -> None:
    with pytest.raises(InputError, match=r"not in the model: bn0\.weight"):
        load(dict(TheAuthors(4, 2, True).state_dict()), Paraphraser(4))
    with pytest.raises(InputError, match=r"missing: encoder\.1\.weight"):
        load(dict(TheAuthors(4, 2, False).state_dict()), Paraphraser(4, batch_norm=True))
    with pytest.raises(InputError, match=r"missing: encoder\.1\.weight"):
        load(dict(RepDistillers(4, 2, False).state_dict()), Paraphraser(4, batch_norm=True))


def test_shortcuts_without_parameters_are_none_of_ours() -> None:
    """akamaster's pad with zeros: such a network is another one than ours."""
    state = {as_pytorch_cifar(key): value for key, value in resnet().state_dict().items() if "downsample" not in key}
    with pytest.raises(InputError, match=r"missing: layer2\.0\.downsample\.0\.weight"):
        load(state, resnet())


@pytest.mark.parametrize("source", [None, *RENAMED])
def test_batch_counters_that_old_files_lack_are_zero(source: str | None) -> None:
    rename = RENAMED[source] if source else str
    state, model = resnet().state_dict(), resnet()
    old = {rename(key): value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    report = load(old, model)
    assert report[-1] == f"num_batches_tracked, absent in old files, set to 0: {len(state) - len(old)} tensors"
    assert len(report) == (2 if source else 1)
    for key, value in model.state_dict().items():
        assert torch.equal(value, torch.zeros_like(value) if key.endswith("num_batches_tracked") else state[key])


def test_nothing_else_is_filled_in() -> None:
    state = {as_mmpretrain(key): value for key, value in resnet().state_dict().items()}
    del state["backbone.bn1.running_mean"], state["backbone.bn1.num_batches_tracked"]
    with pytest.raises(InputError, match=r"missing: bn1\.running_mean\n  missing: bn1\.num_batches_tracked$"):
        load(state, resnet())


def test_two_names_for_one_layer_are_no_choice() -> None:
    state = {as_mmpretrain(key): value for key, value in resnet().state_dict().items()}
    with pytest.raises(InputError, match=r"not in the model: head\.fc\.bias$"):
        load({"fc.bias": torch.zeros(10), **state}, resnet())
    with pytest.raises(InputError, match=r"not in the model: backbone\.fc\.bias$"):
        load({**state, "backbone.fc.bias": torch.zeros(10)}, resnet())


NAMES = list(resnet().state_dict())
PARTS = ["", "backbone.", "head.", "module.", "linear.", "shortcut.", "conv0.", "deconv1.", "encoder.3."]
EXTRA = st.one_of(st.text(), st.builds(lambda part, name: part + name, st.sampled_from(PARTS), st.sampled_from(NAMES)))


@settings(max_examples=100, deadline=None)
@given(source=st.sampled_from([None, *RENAMED]), extra=EXTRA, first=st.booleans())
def test_a_tensor_without_a_place_is_always_named(source: str | None, extra: str, first: bool) -> None:
    rename = RENAMED[source] if source else str
    model = build_model("resnet8", 10, width=4)
    state = {rename(key): value for key, value in model.state_dict().items()}
    assume(extra not in state)
    mixed = {extra: torch.ones(1), **state} if first else {**state, extra: torch.ones(1)}
    with pytest.raises(InputError) as caught:
        load(mixed, model)
    # Where two tensors of the file have one place, either of them is the one too many.
    twins = [extra, *(key for key in state if own_name(key) == own_name(extra))]
    assert any(f"not in the model: {name}" in str(caught.value) for name in twins)


def own_name(key: str) -> str:
    """What any of the sources may mean by ``key``; written down anew, without the table."""
    key = re.sub(r"^(backbone\.|head\.(?=fc\.))", "", key)
    return re.sub(r"^linear\.", "fc.", re.sub(r"(^|\.)shortcut\.", r"\1downsample.", key))


def test_a_stage_takes_weights_from_elsewhere_and_says_so(tiny: Path, run: Run) -> None:
    state = build_model("resnet8", 4, width=8).state_dict()
    old = {f"module.{as_mmpretrain(key)}": value for key, value in state.items() if "num_batches" not in key}
    torch.save({"meta": {"epoch": 3}, "best_acc": np.float64(9), "state_dict": old}, "x.pth")
    teacher = "teacher={model='resnet8', args={width=8}, weights='x.pth'}"
    done = run("teacher", tiny, teacher)
    assert done.code == 0, done.err
    assert "taken from x.pth" in done.out
    assert f"named as in mmpretrain: {len(old)} of {len(old)} tensors matched" in done.out
    assert f"num_batches_tracked, absent in old files, set to 0: {len(state) - len(old)} tensors" in done.out
    assert same(read_weights(Path("runs/tiny/teacher/weights.safetensors")), dict(state))

    torch.save({**old, "module.neck.weight": torch.ones(1)}, "x.pth")
    refused(run("teacher", tiny, teacher, "--fresh"), r"x\.pth do not fit ResNet", r"not in the model: neck\.weight")
