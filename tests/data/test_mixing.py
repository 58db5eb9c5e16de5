"""Mixup and CutMix: which images are mixed, in which shares, and that it is a function of the seed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from factor_transfer.data import Augment, Batches, Mixing, Split

LABELS = torch.arange(6) % 3
IMAGES = torch.randint(0, 256, (6, 3, 8, 10), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
OTHERS = [1, 0, 3, 2, 5, 4]


def shares(probabilities: Tensor) -> Tensor:
    """The share of each image's own class."""
    return probabilities[torch.arange(6), LABELS]


@settings(max_examples=25)
@given(st.integers(0, 2**40), st.floats(0.05, 5))
def test_mixup_adds_neighbours(seed: int, parameter: float) -> None:
    mixed, probabilities = Mixing(3, mixup=parameter)(IMAGES, LABELS, seed)
    share = shares(probabilities)[0].item()
    expected = share * IMAGES.double() + (1 - share) * IMAGES[OTHERS].double()
    assert mixed.dtype == torch.uint8
    assert (mixed.double() - expected).abs().max() <= 0.51
    assert torch.allclose(shares(probabilities), torch.tensor(share))
    assert torch.allclose(probabilities[torch.arange(6), LABELS[OTHERS]], torch.tensor(1 - share), atol=1e-6)


@settings(max_examples=25)
@given(st.integers(0, 2**40))
def test_cutmix_replaces_a_rectangle_and_counts_its_pixels(seed: int) -> None:
    mixed, probabilities = Mixing(3, cutmix=1.0)(IMAGES, LABELS, seed)
    own = (mixed == IMAGES).all(1)  # (B, H, W)
    assert ((mixed == IMAGES) | (mixed == IMAGES[OTHERS])).all()
    foreign = (~own).any(0).nonzero()
    cut = 0
    if len(foreign):
        (top, left), (bottom, right) = foreign.amin(0).tolist(), foreign.amax(0).tolist()
        rectangle = slice(None), slice(None), slice(top, bottom + 1), slice(left, right + 1)
        assert torch.equal(mixed[rectangle], IMAGES[OTHERS][rectangle])
        cut = (bottom + 1 - top) * (right + 1 - left)
    assert shares(probabilities).tolist() == pytest.approx([1 - cut / 80] * 6)


def test_both_are_chosen_equally_often() -> None:
    mixing = Mixing(3, mixup=1.0, cutmix=1.0)
    cut = sum(
        bool(((mixed == IMAGES) | (mixed == IMAGES[OTHERS])).all())
        for mixed, _ in (mixing(IMAGES, LABELS, seed) for seed in range(200))
    )
    assert 70 < cut < 130


def test_the_last_image_of_an_odd_number_stays() -> None:
    mixed, probabilities = Mixing(3, mixup=1.0)(IMAGES[:5], LABELS[:5], 0)
    assert torch.equal(mixed[4], IMAGES[4])
    assert probabilities[4].tolist() == [0.0, 1.0, 0.0]


def test_batches_are_mixed_by_seed_epoch_and_step_in_any_number_of_processes() -> None:
    images = torch.randint(0, 256, (40, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    split, augment = Split(images, torch.arange(40) % 4), Augment(flip=True)

    def batches(rank: int = 0, world: int = 1) -> Batches:
        return Batches(split, 12, 3, augment, rank=rank, world=world, mixing=Mixing(4, mixup=1.0, cutmix=1.0))

    whole = list(batches().epoch(1))
    assert {tuple(batch.labels.shape) for batch in whole} == {(12, 4), (4, 4)}
    resumed = list(batches().epoch(1, start=2))
    assert all(torch.equal(a.images, b.images) for a, b in zip(whole[2:], resumed, strict=True))
    parts = [list(batches(rank=rank, world=3).epoch(1)) for rank in range(3)]
    for step in range(3):
        joined = torch.cat([part[step].images for part in parts])
        assert torch.equal(joined, whole[step].images)
    assert not torch.equal(whole[0].labels, next(batches().epoch(2)).labels)
