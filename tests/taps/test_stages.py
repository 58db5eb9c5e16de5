import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from factor_transfer import build_model
from factor_transfer.errors import InputError
from factor_transfer.taps import Taps
from factor_transfer.taps.stages import LAST_CONV, LAST_STAGE, maps, pre_activation, resolve, stages

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def block(channels: int, out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, stride, 1), nn.BatchNorm2d(out), nn.ReLU())


class PreActivation(nn.Module):
    """Blocks that normalise first: the next block's norm returns a map like the last stage's end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 1, 1)
        self.block1 = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 1))
        self.block2 = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1))
        self.bn = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.fc = nn.Linear(32, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu(self.bn(self.block2(self.block1(self.stem(images)))))
        return self.fc(self.pool(x).flatten(1))


class Expanding(nn.Module):
    """A block that begins with a module of its own at the resolution before."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            block(3, 4, 1),
            nn.Sequential(block(4, 4, 1), block(4, 4, 1)),
            nn.Sequential(block(4, 12, 1), block(12, 6, 2), block(6, 6, 1)),
        )
        self.fc = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.features(images).mean((2, 3)))


def test_a_residual_network_ends_its_stages_with_its_layers() -> None:
    assert stages(build_model("resnet8", 5, width=2), IMAGES) == ["layer1", "layer2", "layer3"]


def test_a_stage_ends_behind_its_activation_and_before_the_next_ones_norm() -> None:
    assert stages(PreActivation(), IMAGES) == ["block1", "relu"]


def test_a_block_that_ends_at_the_previous_resolution_ends_no_stage() -> None:
    assert stages(Expanding(), IMAGES) == ["features.1", "features"]


def test_a_plain_chain_of_layers_has_stages_too() -> None:
    chain = nn.Sequential(
        nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, 1, 1), nn.ReLU(), nn.Flatten()
    )
    assert stages(nn.Sequential(*chain, nn.Linear(256, 3)), IMAGES) == ["1", "4"]


def test_maps_of_one_pixel_are_no_maps() -> None:
    model = build_model("resnet8", 5, width=2)
    assert stages(model, IMAGES[:, :, :4, :4]) == ["layer1", "layer2"]
    assert "layer3" not in maps(model, IMAGES[:, :, :4, :4])


def test_words_for_taps() -> None:
    model = build_model("resnet8", 5, width=2)
    assert resolve(model, IMAGES, LAST_STAGE) == "layer3"
    assert resolve(model, IMAGES, "layer2.0.conv1") == "layer2.0.conv1"
    assert resolve(build_model("resnet20", 5, width=2), IMAGES, LAST_CONV) == "layer3.2.conv2"
    with pytest.raises(InputError, match="no convolution"):
        resolve(nn.Sequential(nn.Flatten(), nn.Linear(768, 2)), IMAGES, LAST_CONV)


def test_before_the_activation_is_what_the_last_relu_is_given() -> None:
    model = build_model("resnet8", 5, width=2).eval()
    tap = pre_activation(model, IMAGES, "layer2")
    assert tap == "layer2.0.relu:input"
    features = Taps(model, [tap, "layer2"])(IMAGES).features
    assert torch.equal(F.relu(features[tap]), features["layer2"])
    assert features[tap].lt(0).any()
    assert pre_activation(PreActivation(), IMAGES, "block1") == "block1"  # it ends with a convolution


def test_channels_that_come_last_are_put_first() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(3, 6)

        def forward(self, images: Tensor) -> Tensor:
            return self.mix(images.permute(0, 2, 3, 1)).mean((1, 2))

    model = Last()
    (feature,) = Taps(model, ["mix:nhwc"])(IMAGES).features.values()
    assert feature.shape == (2, 6, 16, 16)
    assert torch.allclose(feature.mean((2, 3)), model(IMAGES), atol=1e-6)
    with pytest.raises(InputError, match="unknown view of tap mix 'nchw'"):
        Taps(model, ["mix:nchw"])


class Expansion(nn.Module):
    """A 1x1 convolution behind the last block, which widens its output for the classifier."""

    def __init__(self, widened: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            block(3, 4, 1),
            nn.Sequential(block(4, 6, 2), block(6, 6, 1)),
            nn.Sequential(nn.Conv2d(6, widened, 1), nn.BatchNorm2d(widened), nn.ReLU()),
        )
        self.fc = nn.Linear(widened, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.features(images).mean((2, 3)))


def test_the_last_stage_ends_with_its_last_block_and_not_with_an_expansion_for_the_classifier() -> None:
    assert stages(Expansion(40), IMAGES)[-1] == "features.1"
    assert stages(Expansion(8), IMAGES)[-1] == "features"  # not much wider
    assert stages(build_model("mobilenet_v2", 5), torch.randn(2, 3, 32, 32))[-1] == "features.17"
    # The last convolution of a bottleneck is part of its block.
    assert stages(build_model("resnet50", 5, stem="cifar", width=2), torch.randn(2, 3, 32, 32))[-1] == "layer4"
