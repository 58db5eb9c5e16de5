"""Names and files of RepDistiller, Knowledge-Distillation-Zoo and mmengine; what is in them beside weights."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from factor_transfer import Paraphraser, build_model
from factor_transfer.errors import InputError
from factor_transfer.pipeline.weights.foreign import adapt, read_foreign
from factor_transfer.state_dicts import load_into, read_weights

PATH = Path("elsewhere.pth")
STATE = {"fc.weight": torch.ones(2, 3), "fc.bias": torch.zeros(2)}


def mobilenet(key: str) -> str:
    """What RepDistiller calls a tensor of our MobileNetV2."""
    part, _, rest = key.partition(".")
    if part == "classifier":
        return key
    place, _, rest = rest.partition(".")
    if place in ("0", "18"):
        return f"conv{1 if place == '0' else 2}.{rest}"
    stage, before = next((s, b) for s, b in enumerate((16, 13, 10, 6, 3, 1, 0)) if int(place) > b)
    inside = rest.removeprefix("conv.")
    for ours, theirs in (("0.0", "0"), ("0.1", "1"), ("1.0", "3"), ("1.1", "4"), ("2", "6"), ("3", "7")):
        if inside.startswith(f"{ours}."):
            return f"blocks.{6 - stage}.{int(place) - before - 1}.conv.{theirs}{inside.removeprefix(ours)}"
    raise AssertionError(key)


def zoo(key: str) -> str:
    return key.replace(".downsample.", ".ds.").replace("layer", "res")


@pytest.mark.parametrize(
    ("make", "rename", "source"),
    [
        (lambda: build_model("mobilenet_v2", 3, width=0.2), mobilenet, "RepDistiller's MobileNetV2"),
        (lambda: build_model("resnet14", 3, width=4), zoo, "Knowledge-Distillation-Zoo"),
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_layer_names_of_other_libraries(
    make: Callable[[], nn.Module], rename: Callable[[str], str], source: str, old: bool
) -> None:
    torch.manual_seed(0)
    theirs, ours = make().eval(), make().eval()
    state = {rename(key): value for key, value in theirs.state_dict().items()}
    if old:
        state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    adapted, report = adapt(state, ours)
    load_into(ours, adapted, PATH)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(ours(images), theirs(images))
    assert report[0] == f"the names are those of {source}: {len(state)} of {len(state)} tensors match"
    assert len(report) == 1 + old


def test_our_mobilenet_is_named_as_repdistillers() -> None:
    with torch.device("meta"):
        names = {mobilenet(key) for key in build_model("mobilenet_v2", 100).state_dict()}
    assert len(names) == 320
    assert {"conv1.0.weight", "conv2.1.bias", "blocks.0.0.conv.0.weight", "blocks.6.0.conv.7.bias"} <= names
    assert {"blocks.3.3.conv.3.weight", "blocks.4.2.conv.6.weight", "classifier.0.bias"} <= names


class TheirParaphraser(nn.Module):
    """As in RepDistiller, mmrazor and Knowledge-Distillation-Zoo: an empty module where the batch norm would be."""

    def __init__(self, m: int, z: int, batch_norm: bool) -> None:
        super().__init__()

        def stack(layer: Any, sizes: list[tuple[int, int]]) -> nn.Sequential:
            return nn.Sequential(
                *(
                    module
                    for before, after in sizes
                    for module in (
                        layer(before, after, 3, 1, 1),
                        nn.BatchNorm2d(after) if batch_norm else nn.Sequential(),
                        nn.LeakyReLU(0.1),
                    )
                )
            )

        self.encoder = stack(nn.Conv2d, [(m, m), (m, z), (z, z)])
        self.decoder = stack(nn.ConvTranspose2d, [(z, z), (z, m), (m, m)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        factor = self.encoder(x)
        return factor, self.decoder(factor)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_paraphrasers_with_gaps_compute_the_same_as_ours(batch_norm: bool) -> None:
    theirs, ours = TheirParaphraser(6, 3, batch_norm), Paraphraser(6, batch_norm=batch_norm)
    state, report = adapt(theirs.state_dict(), ours)
    load_into(ours, state, PATH)
    feature = torch.randn(4, 6, 5, 5)
    factor, rebuilt = theirs(feature)
    assert torch.allclose(ours.encode(feature), factor, atol=1e-6)
    assert torch.allclose(ours(feature), rebuilt, atol=1e-6)
    assert report == (
        [] if batch_norm else ["the names are those of RepDistiller's paraphraser: 12 of 12 tensors match"]
    )


def test_a_paraphraser_is_not_loaded_into_one_of_another_kind() -> None:
    for theirs, ours in ((True, False), (False, True)):
        state, _ = adapt(TheirParaphraser(6, 3, theirs).state_dict(), Paraphraser(6, batch_norm=ours))
        with pytest.raises(InputError, match=r"not in the model: \w+|missing: \w+"):
            load_into(Paraphraser(6, batch_norm=ours), state, PATH)


@pytest.mark.parametrize("names", [("shortcut", "downsample"), ("downsample", "shortcut")])
def test_of_two_names_for_one_layer_none_is_lost(names: tuple[str, str]) -> None:
    model = build_model("resnet8", 3, width=4)
    both = {
        key.replace("downsample", name).replace("fc.", "linear."): value
        for name in names
        for key, value in model.state_dict().items()
    }
    adapted, _ = adapt(both, model)
    assert len(adapted) == len(both)
    with pytest.raises(InputError, match=r"not in the model: layer2\.0\.shortcut"):
        load_into(model, adapted, PATH)


def test_counters_are_not_made_up_for_layers_that_are_missing() -> None:
    model = build_model("resnet8", 3, width=4)
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("layer3.0.bn2.")}
    adapted, report = adapt(state, model)
    assert report == []
    with pytest.raises(InputError, match=r"missing: layer3\.0\.bn2\.num_batches_tracked"):
        load_into(model, adapted, PATH)


def test_a_network_of_another_width_is_refused_by_the_names_of_its_layers() -> None:
    theirs = build_model("resnet8", 3, width=8).state_dict()
    state, _ = adapt({f"backbone.{key}": value for key, value in theirs.items()}, build_model("resnet8", 3, width=4))
    with pytest.raises(InputError, match=r"conv1\.weight: shape \(8, 3, 3, 3\) in the weights, \(4, 3, 3, 3\)"):
        load_into(build_model("resnet8", 3, width=4), state, PATH)


def test_any_module_takes_its_own_weights(tmp_path: Path) -> None:
    for model in (
        nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)),
        nn.BatchNorm1d(2),
        nn.ModuleDict({"module": nn.Linear(3, 2)}),  # all its names begin as those of a wrapped network
        nn.GRU(2, 3),
        nn.ReLU(),
    ):
        torch.save(model.state_dict(), tmp_path / "w.pth")
        load_into(model, adapt(read_foreign(tmp_path / "w.pth"), model)[0], tmp_path / "w.pth")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_wrapper_prefixes_are_removed_from_all_names_or_none(prefix: str, tmp_path: Path) -> None:
    wrapped = {prefix + key: value for key, value in STATE.items()}
    torch.save({"net": wrapped, "acc": 93.1, "epoch": 7}, tmp_path / "w.pth")
    assert read_foreign(tmp_path / "w.pth").keys() == STATE.keys()
    torch.save(wrapped | {"other": torch.ones(1)}, tmp_path / "w.pth")
    assert read_foreign(tmp_path / "w.pth").keys() == wrapped.keys() | {"other"}


# mmengine's own is not installed: what counts is the name.
class HistoryBuffer:
    def __init__(self, values: list[float]) -> None:
        self.values = np.array(values)


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What files of trainings hold beside the weights."""
    name = "mmengine.logging.history_buffer"
    for path in ("mmengine", "mmengine.logging", name):
        monkeypatch.setitem(sys.modules, path, ModuleType(path))
    monkeypatch.setattr(sys.modules[name], "HistoryBuffer", HistoryBuffer, raising=False)
    monkeypatch.setattr(HistoryBuffer, "__module__", name)
    return {
        "best_acc": np.float64(72.3),
        "accuracy": np.float32(72.3),
        "epoch": np.int64(240),
        "flag": np.bool_(True),
        "curve": np.arange(3),
        "names": np.array(["a", "b"]),
        "opt": argparse.Namespace(lr=np.float64(0.05), model="resnet8"),
        "message_hub": {"loss": HistoryBuffer([0.1, 0.2])},
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}},
    }


@pytest.mark.parametrize("zipped", [False, True])
def test_objects_beside_the_weights_are_ignored(beside: dict[str, Any], zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    torch.save({"model": STATE, **beside}, path, _use_new_zipfile_serialization=zipped)
    found = read_foreign(path)
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[key], STATE[key]) for key in STATE)
    assert not any("Inert" in str(entry) for entry in torch.serialization.get_safe_globals())


def test_a_scalar_of_numpy_1_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"model": STATE, "best_acc": np.float64(1)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.", b"numpy.core."))
    assert b"numpy.core.multiarray\nscalar" in path.read_bytes()
    assert read_foreign(path).keys() == STATE.keys()


def test_our_own_files_hold_tensors_alone(beside: dict[str, Any], tmp_path: Path) -> None:
    for key in ("best_acc", "opt", "message_hub"):
        torch.save({"model": STATE, key: beside[key]}, tmp_path / "w.pth")
        with pytest.raises(InputError, match="contain more than tensors"):
            read_weights(tmp_path / "w.pth")


class Runs:
    """Would run a command: by being made, or hidden in what is not looked at."""

    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


class MadeOf:
    """Names an allowed function, and gives it what it should not have."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


@pytest.mark.parametrize(
    "evil",
    [
        Runs(),
        argparse.Namespace(x=Runs()),
        MadeOf(np.dtype, Runs()),
        MadeOf(eval, "__import__('os').system('touch ran')"),
        MadeOf(getattr, np.dtype, "type"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_a_file_that_names_other_code_is_refused_and_not_run(evil: Any, zipped: bool, tmp_path: Path) -> None:
    torch.save({"model": STATE, "best_acc": evil}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match="contain more than tensors"):
        read_foreign(tmp_path / "w.pth")
    assert not Path("ran").exists()


def test_a_dtype_with_a_state_of_its_own_is_never_made(tmp_path: Path) -> None:
    class Dtype:
        def __reduce__(self) -> Any:  # of objects, but with flags that say of none: NumPy would follow any pointer
            return np.dtype, ("O", False, True), (3, "|", None, None, None, -1, -1, 0)

    scalar = np.float64(0).__reduce__()[0]
    torch.save({"model": STATE, "best_acc": MadeOf(scalar, Dtype(), b"\x41" * 8)}, tmp_path / "w.pth")
    assert read_foreign(tmp_path / "w.pth").keys() == STATE.keys()


def test_a_number_of_numpy_among_the_weights_is_no_weight(tmp_path: Path) -> None:
    torch.save({"model": STATE | {"scale": np.float64(1)}}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="must be a state dict"):
        read_foreign(tmp_path / "w.pth")


def test_a_file_with_two_networks_is_ambiguous(tmp_path: Path) -> None:
    torch.save({"model": STATE, "state_dict": STATE}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="under several keys, model and state_dict"):
        read_foreign(tmp_path / "w.pth")
    torch.save({"model": "resnet8", "state_dict": STATE}, tmp_path / "w.pth")
    assert read_foreign(tmp_path / "w.pth").keys() == STATE.keys()
