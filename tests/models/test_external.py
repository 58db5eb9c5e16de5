import copy
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from torch import Tensor, nn

from conftest import Run, refused
from factor_transfer.errors import InputError
from factor_transfer.models import build_model
from factor_transfer.models import optional as library
from factor_transfer.models.external import build_external, is_external, zoo_size, zoo_statistics
from factor_transfer.taps import Taps

pytestmark = pytest.mark.usefixtures("torchvision_operators")

VIT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 4,
}
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

MINE = """
from torch import nn

size = 8

class Net(nn.Module):
    def __init__(self, num_classes, in_channels, *, width=4):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 3)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, images):
        return self.fc(self.conv(images).mean((2, 3)))

def late(num_classes, in_channels):
    from beside_mine import Other
    return Other(num_classes, in_channels)

def nothing(num_classes, in_channels):
    return {"num_classes": num_classes}
"""


@pytest.fixture
def mine(tmp_path: Path) -> str:
    """A module in the working directory; of a name of its own, since Python imports a name once."""
    name = f"mine_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MINE)
    (tmp_path / "beside_mine.py").write_text(MINE.replace("Net", "Other"))
    return name


# name, args, channels, a tap and the shape of its feature for 16 x 16
NETWORKS: list[Any] = [
    ("timm:resnet10t", {"stem_width": 8, "channels": (4, 8, 8, 16)}, 1, "layer2", (8, 2, 2)),
    (
        "timm:vit_tiny_patch16_224",
        {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2},
        3,
        "blocks.1",
        (16, 4, 4),
    ),
    ("torchvision:resnet18", {}, 3, "layer1", (64, 4, 4)),
    ("transformers:vit", VIT, 1, "vit.layers.1", (16, 4, 4)),
    ("transformers:resnet", {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]}, 3, None, (8, 2, 2)),
]


@pytest.mark.parametrize(("name", "args", "channels", "tap", "shape"), NETWORKS)
def test_a_network_of_a_zoo(name: str, args: dict[str, Any], channels: int, tap: str | None, shape: Any) -> None:
    model = build_model(name, 5, channels, **args)
    images = torch.randn(2, channels, 16, 16)
    tap = tap or "resnet.encoder.stages.1"
    logits, features = Taps(model, [tap])(images)
    assert model.training
    assert type(logits) is Tensor
    assert logits.shape == (2, 5)
    assert features[tap].shape[1:] == shape
    logits.sum().backward()
    assert all(p.grad is not None for key, p in model.named_parameters() if "mask_token" not in key)

    # What a copy and a second network with its weights say is the same, so nothing is kept outside of them.
    model.eval()
    expected = model(images)
    other = build_model(name, 5, channels, **args).eval()
    other.load_state_dict(model.state_dict())
    for same in (copy.deepcopy(model), other):
        assert torch.allclose(same(images), expected, rtol=1e-4, atol=1e-6)  # laid out otherwise, rounded otherwise


def test_paths_and_keys_are_the_librarys_own() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model("vit", num_labels=5, num_channels=3, **VIT)
    theirs = transformers.AutoModelForImageClassification.from_config(config)
    ours = build_model("transformers:vit", 5, **VIT)
    assert type(ours) is type(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_auxiliary_classifiers_are_left_out() -> None:
    model = build_model("torchvision:googlenet", 3, init_weights=False)
    assert model.training
    with torch.no_grad():
        assert model(torch.randn(2, 3, 64, 64)).shape == (2, 3)


def test_a_custom_callable(mine: str, tmp_path: Path) -> None:
    before = list(sys.path)
    model = build_model(f"{mine}:Net", 5, 2, width=3)
    assert model(torch.randn(2, 2, 8, 8)).shape == (2, 5)
    assert build_model(f"{mine}:late", 5)(torch.randn(2, 3, 8, 8)).shape == (2, 5)
    assert sys.path == before
    _, features = Taps(model, ["conv"])(torch.randn(2, 2, 8, 8))
    assert features["conv"].shape == (2, 3, 6, 6)
    assert build_external("torch.nn:Identity", 5, 3)(torch.ones(1)) == 1  # whatever can be imported


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("timm:resnet19", {}, r"unknown network of timm 'resnet19'; did you mean 'resnet\d+"),
        ("timm:resnet18.a1_in2k", {}, r"did you mean 'resnet18.a1_in1k'"),
        ("timm:", {}, "unknown network of timm ''"),
        ("timm:resnet18", {"widht": 3}, r"timm cannot build 'resnet18' with widht = 3: TypeError: .*'widht'"),
        ("timm:local-dir:nowhere", {}, "timm cannot build 'local-dir:nowhere'"),
        ("torchvision:resnet19", {}, r"unknown classification network of torchvision 'resnet19'; did you mean 'resnet"),
        ("torchvision:fasterrcnn_resnet50_fpn", {}, "unknown classification network"),
        ("torchvision:resnet18", {"widht": 3}, r"torchvision cannot build 'resnet18' with widht = 3: TypeError"),
        ("transformers:vti", {}, r"unknown image classification type of transformers 'vti'; did you mean .*'vit'"),
        ("transformers:vit", {"hiden_size": 3}, r"unknown setting of transformers:vit 'hiden_size'; did you mean 'hid"),
        (
            "transformers:vit",
            {"hidden_size": "x"},
            r"transformers cannot build 'vit' with hidden_size = 'x': .*expected",
        ),
        ("nowhere.to_be:found", {}, r"module 'nowhere.to_be' cannot be imported \(No module named 'nowhere'\)"),
        ("timn:resnet18", {}, "the names of zoo networks are timm:NAME"),
        ("model.py:", {}, "is not a valid model name; a name with a colon is package.module:callable"),
        ("{mine}:Nett", {}, r"has no 'Nett'; did you mean 'Net'"),
        ("{mine}:size", {}, "is of type int; a function or class is needed"),
        (
            "{mine}:Net",
            {"widht": 3},
            r"raises a TypeError when called with num_classes = 5, in_channels = 3, widht = 3",
        ),
        ("{mine}:nothing", {}, r"returns an object of type dict; a torch.nn.Module is needed"),
    ],
)
def test_networks_that_cannot_be_built_are_refused(name: str, args: dict[str, Any], message: str, mine: str) -> None:
    with pytest.raises(InputError, match=message):
        build_model(name.format(mine=mine), 5, **args)


def test_channels_that_a_network_cannot_take() -> None:
    with pytest.raises(InputError, match="takes images of 3 channels, but these have 1"):
        build_model("torchvision:resnet18", 5, 1)
    with pytest.raises(InputError, match="at least one class"):
        build_model("timm:resnet10t", 0)


@pytest.mark.parametrize("zoo", ["timm", "torchvision", "transformers"])
def test_a_zoo_that_is_not_installed(zoo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, zoo, None)
    with pytest.raises(InputError, match=rf"{zoo} is not installed; .* -m pip install 'factor-transfer\[{zoo}\]'"):
        build_model(f"{zoo}:resnet18", 5)


def test_a_torchvision_of_another_build(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(library, "import_module", fails)
    with pytest.raises(InputError, match=r"^torchvision cannot be imported with this torch: .*same index"):
        build_model("torchvision:resnet18", 5)
    with pytest.raises(InputError, match=r"^torchvision, which timm imports, cannot be imported with this torch"):
        build_model("timm:resnet18", 5)


def test_zoos_are_imported_only_when_used() -> None:
    code = (
        "import sys, factor_transfer, factor_transfer.cli; factor_transfer.build_model('resnet8', 2);"
        "print([zoo for zoo in ('timm', 'torchvision', 'transformers', 'huggingface_hub') if zoo in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_metrics_work_beside_a_torchvision_that_does_not(tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms …')")
    code = "import sys; sys.path.insert(0, '.'); import factor_transfer.report.metrics"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


# Weights, without a network


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As where there is none: no name resolves, and nothing was fetched before."""

    def unknown(*args: Any, **kwargs: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("timm:resnet10t", "cannot be reached"),
        ("timm:hf-hub:timm/resnet10t.c3_in1k", "cannot be reached"),
        ("torchvision:squeezenet1_1", "Name or service not known"),
        ("transformers:google/vit-base-patch16-224", "cannot be reached"),
    ],
)
@pytest.mark.usefixtures("no_network")
def test_weights_that_cannot_be_fetched(name: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(seconds: float) -> None:
        raise AssertionError(f"waits for {seconds} s")

    monkeypatch.setattr(time, "sleep", never)
    state = huggingface_hub.constants.HF_HUB_OFFLINE, socket.getdefaulttimeout()
    with pytest.raises(InputError, match=rf"^{name} could not be fetched and is not cached: .*{why}.*weights = FILE"):
        build_model(name, 5, pretrained=True)
    assert (huggingface_hub.constants.HF_HUB_OFFLINE, socket.getdefaulttimeout()) == state


@pytest.mark.usefixtures("no_network")
def test_fetched_weights_are_used_offline(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--some--vit"
    zoo: Any = build_model("transformers:vit", 5, **VIT)
    zoo.save_pretrained(repository / "snapshots" / "0123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    assert_same_but(build_model("transformers:some/vit", 5, pretrained=True), zoo, set())


@pytest.mark.usefixtures("no_network")
def test_offline_mode_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        build_model("timm:resnet10t", 5, pretrained=True)
    assert huggingface_hub.constants.HF_HUB_OFFLINE


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet8", "resnet8 is one of this package's networks, which have no pretrained"),
        ("timm:coatnet_0_224", r"timm has no pretrained weights of 'coatnet_0_224'; did you mean 'coatnet_"),
        ("transformers:vit", "is a model type, which has no pretrained weights"),
        ("torch.nn:Identity", "is not a zoo's network and has no pretrained weights"),
    ],
)
def test_networks_without_weights(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_model(name, 5, pretrained=True)


def test_pretrained_timm(tmp_path: Path) -> None:
    args: dict[str, Any] = {"stem_width": 8, "channels": (4, 8, 8, 16)}
    zoo = build_model("timm:resnet10t", 1000, **args)
    torch.save(zoo.state_dict(), tmp_path / "zoo.pth")
    args["pretrained_cfg_overlay"] = {"file": str(tmp_path / "zoo.pth")}
    assert_same_but(build_model("timm:resnet10t", 1000, pretrained=True, **args), zoo, set())
    assert_same_but(build_model("timm:resnet10t", 5, pretrained=True, **args), zoo, {"fc.weight", "fc.bias"})
    with pytest.raises(InputError, match=r"timm cannot build 'resnet10t' with .*size mismatch"):
        build_model("timm:resnet10t", 5, pretrained=True, **args | {"stem_width": 16})


@pytest.mark.parametrize(
    ("name", "classifier"), [("squeezenet1_1", "classifier.1"), ("mobilenet_v3_small", "classifier.3")]
)
def test_pretrained_torchvision(name: str, classifier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = build_model(f"torchvision:{name}", 1000)
    weights = type(library.library("torchvision").models.get_model_weights(name).DEFAULT)
    monkeypatch.setattr(weights, "get_state_dict", lambda *args, **kwargs: zoo.state_dict())
    assert_same_but(build_model(f"torchvision:{name}", 1000, pretrained=True), zoo, set())
    model = build_model(f"torchvision:{name}", 5, pretrained=True)
    assert_same_but(model, zoo, {f"{classifier}.weight", f"{classifier}.bias"})
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 5)


def test_pretrained_transformers(tmp_path: Path) -> None:
    zoo: Any = build_model("transformers:vit", 7, **VIT)
    zoo.save_pretrained(tmp_path / "zoo")
    name = f"transformers:{tmp_path / 'zoo'}"
    assert_same_but(build_model(name, 7, pretrained=True), zoo, set())
    model = build_model(name, 5, pretrained=True)
    assert_same_but(model, zoo, {"classifier.weight", "classifier.bias"})
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 5)
    fresh = build_model(name, 7, hidden_dropout_prob=0.5)
    assert fresh.get_parameter("classifier.weight").ne(zoo.get_parameter("classifier.weight")).any()
    config: Any = fresh.config
    assert config.hidden_dropout_prob == 0.5

    for changed in ({"in_channels": 1}, {"num_hidden_layers": 3}):
        with pytest.raises(InputError, match=r"do not fit .*: vit\."):
            build_model(name, 7, pretrained=True, **changed)
    with pytest.raises(InputError, match=r"unknown setting of .* 'image_sise'; did you mean 'image_size'"):
        build_model(name, 7, image_sise=3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="transformers cannot build"):
        build_model(f"transformers:{tmp_path / 'empty'}", 7)

    assert zoo_statistics(name, model) is None
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.1, 0.2, 0.3],
    }
    (tmp_path / "zoo" / "preprocessor_config.json").write_text(json.dumps(processor))
    assert zoo_statistics(name, model) == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    (tmp_path / "zoo" / "preprocessor_config.json").write_text(json.dumps(processor | {"do_normalize": False}))
    assert zoo_statistics(name, model) is None


def assert_same_but(model: nn.Module, zoo: nn.Module, fresh: set[str]) -> None:
    """All weights but ``fresh`` are the zoo's."""
    mine, theirs = model.state_dict(), zoo.state_dict()
    assert list(mine) == list(theirs)
    assert {key for key in mine if mine[key].shape != theirs[key].shape} == fresh
    assert all(torch.equal(mine[key], theirs[key]) for key in mine if key not in fresh)
    assert model.training


# What a zoo's weights were trained with


def test_statistics_and_size() -> None:
    timm, torchvision = build_model("timm:resnet10t", 5), build_model("torchvision:squeezenet1_1", 5)
    assert zoo_statistics("timm:resnet10t", timm) == IMAGENET
    assert zoo_statistics("timm:resnet10t", timm, in_channels=1) is None
    assert zoo_statistics("torchvision:squeezenet1_1", torchvision) == IMAGENET
    assert zoo_size("timm:resnet10t", timm) == 176
    assert zoo_size("torchvision:squeezenet1_1", torchvision) == 224
    vit = build_model("transformers:vit", 5, **VIT)
    assert zoo_statistics("transformers:vit", vit) is None
    assert zoo_size("transformers:vit", vit) == 16
    for name in ("resnet8", "torch.nn:Identity"):
        model = build_model(name, 5)
        assert zoo_statistics(name, model) is None
        assert zoo_size(name, model) is None
        assert is_external(name) == (":" in name)


@pytest.mark.usefixtures("no_network")
def test_statistics_that_cannot_be_fetched_are_not_known() -> None:
    assert zoo_statistics("transformers:google/vit-base-patch16-224", nn.Identity()) is None


# The command line


def test_show(run: Run, mine: str) -> None:
    assert "timm:NAME (installed" in run("show", "models").out
    shown = run("show", "taps", "timm:resnet18", "--size", "64").out
    assert "returns, for 3 x 64 x 64" in shown
    assert any("layer4 " in line and "512 x 2 x 2" in line and "last stage" in line for line in shown.splitlines())
    assert "returns, for 3 x 176 x 176" in run("show", "taps", "timm:resnet10t").out
    assert "3 x 32 x 32" in run("show", "taps", f"{mine}:Net").out
    assert "64 x 16 x 16" in run("show", "taps", "resnet20", "--size", "64").out
    refused(
        run("show", "taps", "timm:vit_tiny_patch16_224", "--size", "32"), "fails on an image of 3 x 32 x 32", "--size"
    )
    refused(run("show", "models", "--size", "32"), "takes no --size")
    refused(run("show", "taps", "timm:resnet19"), "unknown network of timm")
