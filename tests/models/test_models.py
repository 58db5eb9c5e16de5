from typing import Any

import pytest
import torch
from torch import Tensor, nn

from factor_transfer import build_model
from factor_transfer.errors import InputError
from factor_transfer.models import MODELS, Normalize, macs, parameters
from factor_transfer.models.cost import NotInitialized, layer_macs
from factor_transfer.taps import Taps


@pytest.mark.parametrize(
    ("name", "classes", "count"),
    [
        ("resnet18", 1000, 11_689_512),  # torchvision
        ("resnet34", 1000, 21_797_672),
        ("resnet50", 1000, 25_557_032),
        ("resnet20", 10, 272_474),  # 0.27 M, He et al. 2016, with projection shortcuts
        ("resnet56", 10, 855_770),  # 0.86 M
        ("resnet110", 10, 1_730_714),  # 1.7 M
        ("resnet20", 100, 278_324),  # RepDistiller's
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, classes: int, count: int) -> None:
    with torch.device("meta"):
        assert parameters(build_model(name, classes)) == count


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_model_takes_any_channels_and_classes(name: str, channels: int) -> None:
    with torch.device("meta"):
        assert build_model(name, 7, channels)(torch.zeros(2, channels, 64, 64)).shape == (2, 7)


def test_stems() -> None:
    with torch.device("meta"):
        images = torch.zeros(1, 3, 64, 64)
        for stem, size in (("cifar", 64), ("imagenet", 16)):
            _, features = Taps(build_model("resnet18", 10, stem=stem), ["layer1", "layer4"])(images)
            assert features["layer1"].shape == (1, 64, size, size)
            assert features["layer4"].shape == (1, 512, size // 8, size // 8)


@pytest.mark.parametrize(("name", "args"), [("resnet14", {}), ("resnet50", {"stem": "cifar", "width": 4})])
def test_stage_taps_are_after_the_last_relu(name: str, args: dict[str, Any]) -> None:
    model = build_model(name, 10, **args)
    stages = [path for path, _ in model.named_children() if path.startswith("layer")]
    _, features = Taps(model, stages)(torch.randn(2, 3, 8, 8))
    assert len(features) == (4 if name == "resnet50" else 3)
    for feature in features.values():
        assert feature.min() == 0
        assert feature.max() > 0


def test_a_small_network_can_learn() -> None:
    torch.manual_seed(0)
    model, images = build_model("resnet8", 2, 1, width=4), torch.randn(16, 1, 8, 8)
    labels = (images.mean((1, 2, 3)) > 0).long()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


def test_unknown_names_get_the_nearest_name() -> None:
    with pytest.raises(InputError, match=r"unknown model 'resnet21'; did you mean"):
        build_model("resnet21", 10)
    with pytest.raises(InputError, match=r"unknown argument of resnet20 'widht'; did you mean 'width'"):
        build_model("resnet20", 10, widht=3)
    with pytest.raises(InputError, match="at least one class"):
        build_model("resnet20", 0)


def test_macs_are_counted_as_by_hand() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 3, stride=2, padding=1)
            self.fc = nn.Linear(5, 7)

        def forward(self, images: Tensor) -> Tensor:
            return self.fc(self.conv(images).mean((2, 3)))

    # 4 x 4 outputs of 5 channels, each from 3 x 3 x 3 inputs; then 5 x 7.
    assert macs(Net(), torch.zeros(6, 3, 8, 8)) == 4 * 4 * 5 * 27 + 35


def test_macs_of_attention_are_counted_as_by_hand() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.layer(tokens)

    # 5 tokens of 8 channels: queries, keys, values and the output; every token with every token, twice; 8 to 16 to 8.
    projections, products, mlp = 4 * 5 * 8 * 8, 2 * 5 * 5 * 8, 2 * 5 * 8 * 16
    fused = torch.backends.mha.get_fastpath_enabled()
    assert macs(Net(), torch.zeros(3, 5, 8)) == projections + products + mlp
    assert torch.backends.mha.get_fastpath_enabled() is fused
    with pytest.raises(InputError, match="the batch is empty"):
        macs(Net(), torch.zeros(0, 5, 8))


def test_macs_of_published_networks() -> None:
    with torch.device("meta"):
        # 41 M for ResNet-20 (He et al. 2016 counts multiply-adds alike), 1.8 G and 4.1 G for ResNet-18 and 50.
        assert macs(build_model("resnet20", 10), torch.zeros(1, 3, 32, 32)) == pytest.approx(41e6, rel=0.01)
        assert macs(build_model("resnet18", 1000), torch.zeros(1, 3, 224, 224)) == pytest.approx(1.8e9, rel=0.02)
        assert macs(build_model("resnet50", 1000), torch.zeros(1, 3, 224, 224)) == pytest.approx(4.1e9, rel=0.02)


@pytest.mark.parametrize(
    "name", ["resnet8", "resnet50", "wrn_16_1", "vgg8", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2"]
)
def test_all_macs_of_our_networks_are_in_their_layers(name: str) -> None:
    images = torch.zeros(2, 3, 64, 64)
    with NotInitialized():
        model = build_model(name, 10)
    assert layer_macs(model, images) == macs(model, images)
    assert not any(module._forward_hooks for module in model.modules())


def test_normalize_is_the_formula_and_leaves_no_weights() -> None:
    images = torch.randint(0, 256, (3, 2, 4, 4), dtype=torch.uint8)
    normalize = Normalize((0.4, 0.5), (0.2, 0.3))
    for channel, mean, std in ((0, 0.4, 0.2), (1, 0.5, 0.3)):
        expected = (images[:, channel].double() / 255 - mean) / std
        assert torch.allclose(normalize(images)[:, channel].double(), expected, atol=1e-5)
    assert normalize.state_dict() == {}
