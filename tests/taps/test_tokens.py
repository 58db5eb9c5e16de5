import pytest
import torch
from torch import Tensor, nn

from factor_transfer.errors import InputError
from factor_transfer.taps import Taps
from factor_transfer.taps.stages import feature_shape, stages
from factor_transfer.taps.tokens import fold, patch_grid

IMAGES = torch.randn(2, 3, 12, 8, generator=torch.Generator().manual_seed(0))


class Tokens(nn.Module):
    """A vision transformer without its attention: patches of 2 x 2, some tokens before them, channels 5."""

    def __init__(self, before: int = 1) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 5, 2, 2)
        self.before = nn.Parameter(torch.randn(1, before, 5))
        self.embed = nn.Identity()
        self.heads = nn.Identity()
        self.block = nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 5))
        self.norm = nn.LayerNorm(5)
        self.fc = nn.Linear(5, 4)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch(images).flatten(2).transpose(1, 2)
        x = self.embed(torch.cat([self.before.expand(len(images), -1, -1), patches], 1))
        self.heads(x.unflatten(2, (5, 1)).transpose(1, 2))  # four dimensions, but no map
        x = self.block(x)
        return self.fc(self.norm(x).mean(1))


@pytest.mark.parametrize("before", [0, 1, 2, 5])
def test_tokens_become_a_map_in_their_places(before: int) -> None:
    model = Tokens(before).eval()
    (feature,) = Taps(model, ["block"])(IMAGES).features.values()
    assert feature.shape == (2, 5, 6, 4)
    # Each place is what its patch's token is: no token before them is among them, and rows stay rows.
    patch = model.patch(IMAGES)
    for row, column in ((0, 0), (0, 3), (5, 0), (3, 2)):
        expected = model.block(patch[:, :, row, column])
        assert torch.allclose(feature[:, :, row, column], expected, atol=1e-6)


def test_folding_keeps_the_gradient_of_the_patches() -> None:
    tokens = torch.randn(2, 7, 3, requires_grad=True)
    fold(tokens, (2, 3)).sum().backward()
    assert tokens.grad is not None
    assert tokens.grad[:, 1:].eq(1).all()
    assert not tokens.grad[:, 0].any()


@pytest.mark.parametrize(
    ("tokens", "maps", "grid"),
    [
        (197, [(224, 224), (14, 14)], (14, 14)),  # ViT-B/16: a class token
        (201, [(14, 14)], (14, 14)),  # with four registers
        (64, [(16, 16), (8, 8)], (8, 8)),
        (16, [(8, 8)], (4, 4)),  # patches merged once
        (9, [(6, 6)], (3, 3)),
        (21, [(4, 5)], (4, 5)),
    ],
)
def test_the_grid_is_that_of_the_patches(tokens: int, maps: list[tuple[int, int]], grid: tuple[int, int]) -> None:
    assert patch_grid(tokens, maps) == grid


def test_tokens_without_a_grid_are_refused() -> None:
    with pytest.raises(InputError, match="40 tokens cannot be arranged"):
        patch_grid(40, [(4, 4)])


def test_the_stage_of_a_transformer_is_behind_its_norm() -> None:
    assert stages(Tokens(), IMAGES) == ["norm"]
    assert feature_shape(Tokens(), "norm", IMAGES) == (5, 6, 4)


def test_another_size_of_images_has_another_grid() -> None:
    taps = Taps(Tokens(), ["norm"])
    assert taps(IMAGES).features["norm"].shape == (2, 5, 6, 4)
    assert taps(IMAGES[:, :, :8]).features["norm"].shape == (2, 5, 4, 4)
