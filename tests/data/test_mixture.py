"""Batches of labelled and unlabelled images: their composition, and how evenly images are used."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from factor_transfer.data import UNLABELLED, Augment, Batches, Mixture, Split, Views, mix
from factor_transfer.errors import InputError


def pool(labelled: int, unlabelled: int) -> Split:
    labels = torch.cat([torch.arange(labelled) % 3, torch.full((unlabelled,), UNLABELLED)])
    return Split(
        torch.arange(labelled + unlabelled, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2), labels
    )


def batches(mixture: Mixture, **more: int) -> Batches:
    split = pool(mixture.labelled, mixture.unlabelled)
    return Batches(split, 1, 5, Augment(), mixture=mixture, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(("share", "parts"), [(0.5, 4), (0.75, 3), (None, 6)])
def test_each_part_of_a_batch_has_its_labelled_images(share: float | None, parts: int) -> None:
    mixture = mix(labelled=30, unlabelled=60, batch_size=12, share=share)
    fewest = mixture.fewest_labelled(parts)
    for batch in batches(mixture).epoch(0):
        assert min(int((part != UNLABELLED).sum()) for part in batch.labels.chunk(parts)) >= fewest


sizes = st.tuples(st.integers(16, 40), st.integers(16, 60), st.integers(4, 16))


@given(sizes, st.sampled_from([None, 0.25, 0.5]))
def test_every_batch_has_its_share_and_all_images_are_used_equally_often(
    numbers: tuple[int, int, int], share: float | None
) -> None:
    labelled, unlabelled, batch_size = numbers
    mixture = mix(labelled, unlabelled, batch_size, share)
    assert mixture.steps * mixture.labelled_per_batch >= labelled
    assert mixture.steps * (batch_size - mixture.labelled_per_batch) >= unlabelled
    source, used = batches(mixture), torch.zeros(labelled + unlabelled, dtype=torch.int64)
    assert len(source) == mixture.steps
    for epoch in range(3):
        for step, batch in enumerate(source.epoch(epoch)):
            assert batch.indices is not None
            assert len(batch.labels) == source.size(step) == batch_size
            assert int((batch.labels != UNLABELLED).sum()) == mixture.labelled_per_batch
            assert torch.equal(batch.labels != UNLABELLED, batch.indices < labelled)
            assert torch.equal(batch.images[:, 0, 0, 0].long(), batch.indices)
            used += batch.indices.bincount(minlength=len(used))
    for part in used.split([labelled, unlabelled]):
        assert part.max() - part.min() <= 1


def test_how_many_images_of_a_batch_are_labelled() -> None:
    assert mix(600, 53_400, 128).labelled_per_batch == 8  # in proportion it would be one
    assert mix(3000, 3000, 128).labelled_per_batch == 64
    assert mix(50_000, 10, 128).labelled_per_batch == 127
    assert mix(100, 1000, 10).labelled_per_batch == 5
    half = mix(600, 53_400, 128, share=0.5)
    assert (half.labelled_per_batch, half.steps) == (64, 835)  # a pass over the unlabelled images
    assert mix(600, 10, 100, share=0.1).steps == 7  # a pass over the labelled ones
    alone = half.labelled_alone()
    assert (alone.labelled_per_batch, alone.batch_size, alone.steps) == (128, 128, 835)
    assert mix(50, 1000, 64).labelled_alone().batch_size == 50
    assert mix(50, 1000, 64).labelled_alone(parts=4).batch_size == 48  # which can be divided into four parts
    with pytest.raises(InputError, match="3 labelled images cannot be divided into 4 parts"):
        mix(3, 1000, 6, share=0.5).labelled_alone(parts=4)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((10, 100, 4, 0.1), "has none of one kind; choose another student.unlabelled_share"),
        ((10, 100, 4, 0.95), "has none of one kind"),
        ((10, 100, 64, 0.5), "would have 32 labelled images, but there are only 10"),
        ((100, 10, 64, 0.5), "would have 32 unlabelled images, but there are only 10"),
    ],
)
def test_batches_that_cannot_be_made(numbers: tuple[int, int, int, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        mix(*numbers)


def test_a_student_alone_sees_labelled_images_only() -> None:
    mixture = mix(20, 50, 8).labelled_alone()
    source = Batches(pool(20, 0), 8, 0, mixture=mixture)
    indices = torch.cat([batch.indices for epoch in range(2) for batch in source.epoch(epoch)])  # type: ignore[misc]
    assert len(indices) == 2 * mixture.steps * 8
    counts = indices.bincount(minlength=20)
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_a_batch_and_each_gets_its_share_of_labels(world: int) -> None:
    mixture = mix(30, 90, 24)
    whole = [batch.indices for batch in batches(mixture).epoch(1)]
    parts = [list(batches(mixture, rank=rank, world=world).epoch(1)) for rank in range(world)]
    for step, indices in enumerate(whole):
        several = [part[step] for part in parts]
        assert torch.equal(torch.cat([part.indices for part in several]), indices)  # type: ignore[misc, arg-type]
        labelled = [int((part.labels != UNLABELLED).sum()) for part in several]
        assert max(labelled) - min(labelled) <= 1


def test_an_epoch_does_not_depend_on_those_before_it() -> None:
    mixture = mix(30, 90, 24)
    source = batches(mixture)
    through = [batch.indices.tolist() for epoch in range(3) for batch in source.epoch(epoch)]  # type: ignore[union-attr]
    resumed = [batch.indices.tolist() for batch in batches(mixture).epoch(2, start=1)]  # type: ignore[union-attr]
    assert resumed == through[2 * mixture.steps + 1 :]
    assert through[: mixture.steps] != through[mixture.steps : 2 * mixture.steps]


def test_no_view_of_an_image_comes_again_before_all_were_used() -> None:
    mixture = mix(10, 80, 16)  # each labelled image is used about nine times per epoch
    views = Views(Augment(flip=True, crop_padding=1), 90, count=4)
    source = Batches(pool(10, 80), 16, 3, Augment(), views=views, mixture=mixture)
    seen: dict[int, list[int]] = {}
    for epoch in range(2):
        for batch in source.epoch(epoch):
            assert batch.indices is not None
            assert batch.views is not None
            for index, view in zip(batch.indices.tolist(), batch.views.tolist(), strict=True):
                seen.setdefault(index, []).append(view)
    assert max(map(len, seen.values())) > 8
    for found in seen.values():
        assert found == [(found[0] + number) % 4 for number in range(len(found))]
