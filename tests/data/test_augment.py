import pytest
import torch
from torch import Tensor

from factor_transfer.data import Augment, Batches, Split, in_order
from factor_transfer.errors import InputError


def naive(images: Tensor, draws: Tensor, padding: int) -> Tensor:
    """Pad, cut and mirror image by image and pixel by pixel."""
    count, _, height, width = images.shape
    result = torch.zeros_like(images)
    for index in range(count):
        top, left, flipped = draws[index].tolist()
        for row in range(height):
            for column in range(width):
                source_row, source_column = row + top - padding, column + left - padding
                if 0 <= source_row < height and 0 <= source_column < width:
                    target = width - 1 - column if flipped else column
                    result[index, :, row, target] = images[index, :, source_row, source_column]
    return result


@pytest.mark.parametrize(("padding", "flip"), [(0, True), (2, False), (3, True), (0, False)])
def test_crops_and_flips_equal_those_of_single_images(padding: int, flip: bool) -> None:
    images = torch.randint(1, 256, (12, 3, 5, 7), dtype=torch.uint8)
    augment = Augment(crop_padding=padding, flip=flip)
    draws = augment.draw(12, torch.Generator().manual_seed(1))
    assert torch.equal(augment.apply(images, draws), naive(images, draws, padding))
    assert draws[:, :2].min() >= 0
    assert draws[:, :2].max() <= 2 * padding
    assert draws[:, 2].any() == flip


def test_offsets_and_flips_are_uniformly_distributed() -> None:
    draws = Augment(crop_padding=1, flip=True).draw(9000, torch.Generator().manual_seed(0))
    for column, values in ((0, 3), (1, 3), (2, 2)):
        counts = draws[:, column].bincount()
        assert len(counts) == values
        assert counts.min() > 0.9 * 9000 / values


def split(count: int) -> Split:
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    return Split(images.contiguous(), torch.arange(count))


def test_each_epoch_has_every_image_once_in_another_order() -> None:
    batches = Batches(split(23), 5, seed=3)
    orders = []
    for epoch in range(3):
        parts = list(batches.epoch(epoch))
        assert [len(batch.labels) for batch in parts] == [5, 5, 5, 5, 3]
        labels = torch.cat([batch.labels for batch in parts])
        images = torch.cat([batch.images for batch in parts])
        assert torch.equal(images[:, 0, 0, 0].long(), labels)
        assert torch.equal(torch.cat([batch.indices for batch in parts if batch.indices is not None]), labels)
        assert sorted(labels.tolist()) == list(range(23))
        orders.append(tuple(labels.tolist()))
    assert len(set(orders)) == 3


def test_an_epoch_is_a_function_of_seed_and_epoch() -> None:
    augment = Augment(crop_padding=2, flip=True)
    one, other = Batches(split(20), 8, 0, augment), Batches(split(20), 8, 0, augment)
    for _ in one.epoch(0):  # earlier epochs leave no trace
        pass
    for a, b in zip(one.epoch(4), other.epoch(4), strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
    first = [next(Batches(split(20), 20, seed).epoch(epoch))[1].tolist() for seed, epoch in ((0, 1), (1, 0), (1, 1))]
    assert first[0] != first[1] != first[2] != first[0]


def test_a_single_image_makes_no_batch_of_its_own() -> None:
    batches = Batches(split(11), 5, seed=0)
    assert [len(batch.labels) for batch in batches.epoch(0)] == [5, 5]
    assert len(batches) == 2


def test_a_batch_larger_than_the_training_set_is_refused() -> None:
    with pytest.raises(InputError, match="a batch of 9 images is larger than the training set of 8"):
        Batches(split(8), 9, seed=0)


def test_evaluation_sees_every_image_once_in_order() -> None:
    labels = [batch.labels for batch in in_order(split(11), 4)]
    assert [len(batch) for batch in labels] == [4, 4, 3]
    assert torch.cat(labels).tolist() == list(range(11))
