import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import Tensor, nn

from factor_transfer import build_model
from factor_transfer.errors import InputError
from factor_transfer.taps import Taps, shapes
from factor_transfer.taps.extract import Seen
from factor_transfer.taps.stages import feature_shape, stages

IMAGES = torch.randn(2, 3, 16, 16)


class Odd(nn.Module):
    """A network with all that can go wrong with a tap."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.act = nn.ReLU()
        self.pair = Pair()
        self.words = Words()
        self.unused = nn.Identity()
        self.norm = nn.BatchNorm2d(4)
        self.inplace = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        x, _ = self.pair(self.act(self.act(self.conv(images))))
        self.words(x)
        return self.fc(self.inplace(self.norm(x)).mean((2, 3)))


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Words(nn.Module):
    def forward(self, x: Tensor) -> str:
        return "not a tensor"


def test_features_come_with_the_logits_without_leaving_hooks() -> None:
    model = build_model("resnet8", 5, width=2).eval()
    logits, features = Taps(model, ["layer1", "layer3"])(IMAGES)
    assert torch.allclose(logits, model(IMAGES), atol=1e-6)  # in another memory format
    assert {path: tuple(f.shape) for path, f in features.items()} == {"layer1": (2, 2, 16, 16), "layer3": (2, 8, 4, 4)}
    assert all(not module._forward_hooks for module in model.modules())


def test_features_carry_gradient() -> None:
    model = build_model("resnet8", 5, width=2)
    _, features = Taps(model, ["layer2"])(IMAGES)
    features["layer2"].sum().backward()
    assert model.get_submodule("conv1").weight.grad is not None


def test_without_logits_the_network_stops_at_the_last_tap() -> None:
    model = build_model("resnet8", 5, width=2).eval()
    calls: list[str] = []
    for name, module in model.named_children():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    logits, features = Taps(model, ["layer1", "layer2"], logits=False)(IMAGES)
    assert logits is None
    assert calls == ["conv1", "bn1", "layer1", "layer2"]
    full = Taps(model, ["layer1", "layer2"])(IMAGES)[1]
    assert all(torch.equal(features[path], full[path]) for path in full)


def test_hooks_are_removed_after_an_error() -> None:
    model = build_model("resnet8", 5, width=2)
    with pytest.raises(RuntimeError, match="channels"):
        Taps(model, ["layer1"])(torch.randn(2, 7, 8, 8))
    assert all(not module._forward_hooks for module in model.modules())


def test_a_wrong_name_raises_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown tap 'layr3'; did you mean 'layer3'"):
        Taps(build_model("resnet8", 5), ["layr3"])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("act", "more than once"),
        ("words", "returns a str"),
        ("unused", "forward pass does not call"),
        ("norm", "modified in place"),
    ],
)
def test_modules_that_cannot_be_taps_are_refused(path: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Taps(Odd(), [path])(IMAGES)


def test_shapes_lists_what_can_be_a_tap_in_the_order_of_the_calls() -> None:
    model = Odd()
    assert shapes(model, IMAGES) == {
        "conv": (2, 4, 14, 14),
        "pair": (2, 4, 14, 14),
        "norm": (2, 4, 14, 14),
        "inplace": (2, 4, 14, 14),
        "fc": (2, 2),
    }
    assert model.training


@pytest.mark.parametrize(("name", "stage"), [("resnet20", "layer3"), ("resnet18", "layer4"), ("resnet50", "layer4")])
def test_the_last_stage_is_found(name: str, stage: str) -> None:
    with torch.device("meta"):
        assert stages(build_model(name, 5), torch.zeros(1, 3, 64, 64))[-1] == stage


def test_a_network_without_feature_maps_has_no_last_stage() -> None:
    with pytest.raises(InputError, match="name a tap"):
        stages(nn.Sequential(nn.Flatten(), nn.Linear(768, 2)), IMAGES)


def test_a_tap_that_returns_no_map_is_refused() -> None:
    with pytest.raises(InputError, match=r"'fc' returns a feature of shape \(2, 5\)"):
        feature_shape(build_model("resnet8", 5), "fc", IMAGES)


def test_threads_share_a_network() -> None:
    """A server answers several requests at the same time, for example with a student of SimKD."""
    torch.manual_seed(0)
    network = Taps(build_model("resnet8", 4, width=4).eval(), ["layer2", "layer3"])
    batches = [torch.randn(2, 3, 8, 8) for _ in range(60)]
    with torch.inference_mode():
        expected = [network(batch) for batch in batches]
    barrier = Barrier(4)

    def see(numbers: list[int]) -> list[Seen]:
        barrier.wait()
        with torch.inference_mode():
            return [network(batches[number]) for number in numbers]

    with ThreadPoolExecutor(4) as pool:
        shares = [list(range(start, len(batches), 4)) for start in range(4)]
        for numbers, found in zip(shares, pool.map(see, shares), strict=True):
            for number, seen in zip(numbers, found, strict=True):
                for tap, feature in expected[number].features.items():
                    assert torch.equal(seen.features[tap], feature)


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_it_can_be_pickled_and_saved_by_torch(protocol: int) -> None:
    network = Taps(build_model("resnet8", 4, width=4).eval(), ["layer2"])
    file = io.BytesIO()
    torch.save(network, file, pickle_protocol=protocol)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(again(images).features["layer2"], network(images).features["layer2"])
