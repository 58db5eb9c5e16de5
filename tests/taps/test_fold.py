import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from factor_transfer import build_model
from factor_transfer.taps import Taps
from factor_transfer.taps.fold import fold_batch_norm

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def taught(model: nn.Module) -> nn.Module:
    """With statistics and scales as training leaves them: none of them is 0 or 1."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low in ((module.running_mean, -0.5), (module.running_var, 0.5), (module.weight, 0.5)):
                if value is not None:
                    value.data.copy_(torch.rand(value.shape, generator=generator) + low)
    return model.eval()


def norms(network: Taps) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


class Odd(nn.Module):
    """Pairs that must stay: each breaks one condition of folding. The first alone can be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.good, self.good_norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.read, self.read_norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.twice, self.twice_norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.scaled, self.scaled_norm = Scaled(8, 8, 1), nn.BatchNorm2d(8)
        self.batch, self.batch_norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, track_running_stats=False)
        self.fc = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.good_norm(self.good(images)))
        y = self.read(x)
        x = x + self.read_norm(y) + y.sigmoid()
        x = self.twice_norm(self.twice(x)) + self.twice(x)
        x = self.batch_norm(self.batch(self.scaled_norm(self.scaled(x))))
        return self.fc(x.mean((2, 3)))


class Scaled(nn.Conv2d):
    """Its weights are standardised: what is folded into them would be taken out again."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, F.normalize(self.weight.flatten(1)).view_as(self.weight), self.bias)


@pytest.mark.parametrize(
    "name", ["resnet20", "resnet50", "wrn_16_2", "vgg8", "mobilenet_v2", "shufflenet_v1", "shufflenet_v2"]
)
def test_the_same_figures_with_fewer_batch_norms(name: str) -> None:
    torch.manual_seed(0)
    network = Taps(taught(build_model(name, 5)))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    folded = fold_batch_norm(network, IMAGES)
    (logits, _), (expected, _) = folded(IMAGES), network.eval()(IMAGES)
    assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert norms(folded) < norms(network)
    if name in ("resnet20", "vgg8"):
        assert norms(folded) == 0
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_features_are_those_of_the_same_paths() -> None:
    taps = ["layer1.0.conv1", "layer2", "layer3.0.bn2:input", "layer3.0.bn1"]
    network = Taps(taught(build_model("resnet8", 5)), taps)
    folded = fold_batch_norm(network, IMAGES)
    expected, found = network(IMAGES).features, folded(IMAGES).features
    for tap in taps:
        assert (found[tap] - expected[tap]).abs().max() <= 1e-4 * expected[tap].abs().max(), tap
    assert norms(folded) == 2  # the two whose convolution's own output is tapped


def test_a_pair_that_something_else_depends_on_stays() -> None:
    network = Taps(taught(Odd()))
    folded = fold_batch_norm(network, IMAGES)
    left = {path for path, module in folded.model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert left == {"read_norm", "twice_norm", "scaled_norm", "batch_norm"}
    assert torch.allclose(folded(IMAGES).logits, network(IMAGES).logits, atol=1e-5)


def test_a_tapped_container_of_a_convolution_keeps_its_feature() -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(3600, 2))
    network = Taps(taught(model), ["0"])
    folded = fold_batch_norm(network, IMAGES)
    assert torch.allclose(folded(IMAGES).features["0"], network(IMAGES).features["0"], atol=1e-5)


def test_rounded_statistics_are_folded_too() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert norms(fold_batch_norm(Taps(taught(build_model("resnet20", 5))), IMAGES)) == 0


def test_no_hook_is_left_behind() -> None:
    model = taught(build_model("resnet8", 5))
    folded = fold_batch_norm(Taps(model), IMAGES)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in [*model.modules(), *folded.modules()])
