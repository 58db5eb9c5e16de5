from typing import Any

import pytest
import torch
from torch import nn

from factor_transfer import build_model
from factor_transfer.models import MODELS, parameters
from factor_transfer.taps import Taps
from factor_transfer.taps.stages import maps, pre_activation, stages

# One of each family, as narrow as it gets.
SMALL: dict[str, dict[str, Any]] = {
    "resnet8x4": {"width": 4},
    "wrn_16_2": {"width": 2},
    "vgg13": {"width": 2},
    "mobilenet_v2": {"width": 0.1, "expansion": 2},
    "shufflenet_v1": {"width": 0.2},
    "shufflenet_v2": {"size": "0.5"},
}

# The ends of stages for images of 32 x 32 pixels: (tap, channels, height and width).
ENDS = {
    "resnet32x4": [("layer1", 64, 32), ("layer2", 128, 16), ("layer3", 256, 8)],
    "wrn_40_2": [("block1", 32, 32), ("block2", 64, 16), ("relu", 128, 8)],
    "wrn_16_1": [("block1", 16, 32), ("block2", 32, 16), ("relu", 64, 8)],
    **{
        f"vgg{depth}": [("block0", 64, 32), ("block1", 128, 16), ("block2", 256, 8), ("block4", 512, 4)]
        for depth in (8, 11, 13, 16, 19)
    },
    "mobilenet_v2": [("features.3", 12, 16), ("features.6", 16, 8), ("features.13", 48, 4), ("features.17", 160, 2)],
    "shufflenet_v1": [("layer1", 240, 16), ("layer2", 480, 8), ("layer3", 960, 4)],
    "shufflenet_v2": [("layer1", 116, 16), ("layer2", 232, 8), ("layer3", 464, 4)],
}


@pytest.mark.parametrize(
    ("name", "count"),
    [  # those of RepDistiller's networks (Tian et al., CRD, ICLR 2020) for CIFAR-100
        ("resnet8", 83_892),
        ("resnet14", 181_108),
        ("resnet20", 278_324),
        ("resnet32", 472_756),
        ("resnet44", 667_188),
        ("resnet56", 861_620),
        ("resnet110", 1_736_564),
        ("resnet8x4", 1_233_540),
        ("resnet32x4", 7_433_860),
        ("wrn_16_1", 180_916),
        ("wrn_16_2", 703_284),
        ("wrn_40_1", 569_780),
        ("wrn_40_2", 2_255_156),
        ("vgg8", 3_965_028),
        ("vgg11", 9_277_284),
        ("vgg13", 9_462_180),
        ("vgg16", 14_774_436),
        ("vgg19", 20_086_692),
        ("mobilenet_v2", 812_836),
        ("shufflenet_v1", 949_258),
        ("shufflenet_v2", 1_355_528),
    ],
)
def test_parameter_counts_are_those_of_the_benchmark(name: str, count: int) -> None:
    with torch.device("meta"):
        assert parameters(build_model(name, 100)) == count


@pytest.mark.parametrize("name", ENDS)
def test_stages_end_at_the_documented_modules(name: str) -> None:
    with torch.device("meta"):
        model, images = build_model(name, 100), torch.zeros(2, 3, 32, 32)
        assert model(images).shape == (2, 100)
        found = maps(model, images)
        assert [(tap, *found[tap]) for tap in stages(model, images)] == [(t, c, s, s) for t, c, s in ENDS[name]]


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("size", [(8, 8), (1, 1), (5, 9)])
def test_small_images_are_accepted(name: str, size: tuple[int, int]) -> None:
    with torch.device("meta"):
        model, images = build_model(name, 3, 1), torch.zeros(2, 1, *size)
        assert model(images).shape == (2, 3)
        if size == (8, 8):
            assert stages(model, images)


def test_vgg_pools_once_more_for_larger_images() -> None:
    with torch.device("meta"):
        model, images = build_model("vgg8", 10), torch.zeros(2, 3, 64, 64)
        assert [maps(model, images)[tap][1] for tap in stages(model, images)] == [64, 32, 16, 8, 4]


def test_a_shufflenet_fits_its_groups() -> None:
    with torch.device("meta"):
        for groups, first in ((1, 144), (2, 200), (3, 240)):  # the paper's table 1
            model = build_model("shufflenet_v1", 10, groups=groups)
            assert maps(model, torch.zeros(2, 3, 32, 32))["layer1"][0] == first
            for width in (0.01, 0.7):
                build_model("shufflenet_v1", 10, groups=groups, width=width)(torch.zeros(2, 3, 8, 8))


def test_shufflenet_sizes_are_the_papers() -> None:
    # torchvision's counts; its stem is a 3x3 convolution.
    with torch.device("meta"):
        for size, count in (("0.5", 1_366_792), ("1", 2_278_604), ("1.5", 3_503_624), ("2", 7_393_996)):
            assert parameters(build_model("shufflenet_v2", 1000, size=size)) == count - 24 * 3 * 8


@pytest.mark.parametrize(("name", "args"), SMALL.items())
def test_a_gradient_reaches_every_parameter(name: str, args: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, images = build_model(name, 3, 2, **args), torch.randn(4, 2, 16, 16)
    model(images.contiguous(memory_format=torch.channels_last)).logsumexp(1).sum().backward()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None, path
        assert parameter.grad.isfinite().all(), path
        convolution = isinstance(model.get_submodule(path.rpartition(".")[0]), nn.Conv2d)
        if not (convolution and path.endswith(".bias")):  # normalisation takes it off again: no gradient but rounding
            assert parameter.grad.any(), path


@pytest.mark.parametrize(("name", "args"), SMALL.items())
def test_evaluation_is_deterministic_and_of_each_image_alone(name: str, args: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, images = build_model(name, 3, **args), torch.randn(4, 3, 16, 16)
    model.train()
    trained = model(images)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.eval()
    with torch.no_grad():
        logits = model(images)
        assert logits.equal(model(images))
        assert torch.allclose(model(images[:1]), logits[:1], atol=1e-4, rtol=1e-4)
    assert not logits.allclose(trained)
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("name", "args"), SMALL.items())
def test_the_last_stage_is_behind_its_activation(name: str, args: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, images = build_model(name, 3, **args).eval(), torch.randn(2, 3, 32, 32)
    last = stages(model, images)[-1]
    if name == "mobilenet_v2":  # the blocks of this family end without an activation
        assert pre_activation(model, images, last) == last
        return
    before = pre_activation(model, images, last)
    with torch.no_grad():
        _, features = Taps(model, {last, before})(images)
    assert features[last].min() == 0
    assert features[last].max() > 0
    if name != "shufflenet_v2":  # its last layer shuffles what other units activated, too
        assert before.endswith(":input")
        assert features[before].relu().equal(features[last])


def test_no_activation_works_in_place() -> None:
    with torch.device("meta"):
        for name in MODELS:
            assert not any(getattr(module, "inplace", False) for module in build_model(name, 10).modules())


def test_modules_are_named_as_weights_from_elsewhere_name_them() -> None:
    expected = {
        "wrn_16_2": "conv1 block1.layer.0.bn1 block3.layer.1.conv2 block2.layer.0.convShortcut bn1 relu fc",
        "vgg8": "block0.0 block0.1 block4.2 pool3 classifier",
        "mobilenet_v2": "features.0.0 features.1.conv.0.0 features.17.conv.3 features.18.1 classifier.0",
        "shufflenet_v1": "conv1 bn1 layer1.0.conv1 layer2.7.bn3 linear",
        "shufflenet_v2": "conv1 layer1.0.conv5 layer2.7.bn3 conv2 bn2 linear",
    }
    with torch.device("meta"):
        for name, paths in expected.items():
            model: nn.Module = build_model(name, 10)
            assert set(paths.split()) <= {path for path, _ in model.named_modules()}
