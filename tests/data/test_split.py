import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from factor_transfer.data import Data, Split, open_data, stratified
from factor_transfer.errors import InputError


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0, 1), st.integers(0, 9))
def test_a_stratified_split_is_a_partition_in_proportion(labels: list[int], share: float, seed: int) -> None:
    tensor = torch.tensor(labels)
    count = round(share * len(labels))
    first, second = stratified(tensor, count, seed)
    assert len(first) == count
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(len(labels)))
    for label in set(labels):
        exact = labels.count(label) * count / len(labels)
        assert abs((tensor[first] == label).sum().item() - exact) < 1
    again, _ = stratified(tensor, count, seed)
    assert torch.equal(first, again)


def test_the_seed_matters() -> None:
    labels = torch.arange(100) % 5
    assert not torch.equal(stratified(labels, 20, 0)[0], stratified(labels, 20, 1)[0])


def test_more_images_than_there_are_is_refused() -> None:
    with pytest.raises(InputError, match="5 samples were requested, but there are only 3"):
        stratified(torch.zeros(3, dtype=torch.long), 5, 0)


def test_digits_are_those_of_scikit_learn() -> None:
    data = open_data("digits", validation=0.2)
    test = data.test()
    assert (len(data.train), len(data.validation), len(test)) == (718, 180, 899)
    assert data.train.images.shape == (718, 1, 8, 8)
    assert data.train.images.dtype == torch.uint8
    assert data.train.images[:].max() == 255
    assert data.classes == tuple("0123456789")
    # The first image of scikit-learn's test half is an 8.
    assert test.labels[0] == 8
    assert data.validation.labels.bincount().min() >= 17


def test_validation_is_cut_from_the_training_images_and_limit_comes_first() -> None:
    whole = open_data("synthetic", train=80, validation=0.0)
    data = open_data("synthetic", train=80, limit=40, validation=0.25)
    assert (len(whole.train), len(whole.validation)) == (80, 0)
    assert (len(data.train), len(data.validation)) == (30, 10)
    rows = {image.numpy().tobytes() for image in whole.train.images[:]}
    parts = [{image.numpy().tobytes() for image in split.images[:]} for split in (data.train, data.validation)]
    assert parts[0] | parts[1] <= rows
    assert not parts[0] & parts[1]


def test_statistics_are_measured_on_the_training_images() -> None:
    data = open_data("synthetic", train=50)
    pixels = data.train.images[:].double() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-6)
    assert data.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=1e-6)
    given = open_data("synthetic", mean=[0.1, 0.2, 0.3], std=[0.25, 0.5, 1.0])
    assert (given.mean, given.std) == ((0.1, 0.2, 0.3), (0.25, 0.5, 1.0))


def test_the_fingerprint_covers_all_that_training_uses() -> None:
    def fingerprint(**options: object) -> str:
        return open_data("synthetic", **options).fingerprint  # type: ignore[arg-type]

    assert fingerprint() == fingerprint(test=99)
    assert len({fingerprint(), fingerprint(train=63), fingerprint(split_seed=1), fingerprint(validation=0.2)}) == 4
    data = open_data("synthetic")
    relabelled = Split(data.train.images, data.train.labels.flip(0))
    assert (
        Data(data.classes, relabelled, data.validation, data.test, data.mean, data.std).fingerprint != data.fingerprint
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": [0.5]}, "data.mean has 1 values, but the images have 3 channels"),
        ({"std": [0.5, 0.0, 0.5]}, "data.std must be greater than 0"),
        ({"train": 1, "validation": 0.9}, "no training images are left"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_data("synthetic", **options)  # type: ignore[arg-type]


def test_an_unknown_data_set_gets_the_nearest_name() -> None:
    with pytest.raises(InputError, match="unknown data set 'cifar11'; did you mean 'cifar10'"):
        open_data("cifar11")


def test_a_split_seed_reaches_the_folder_too(tmp_path_factory: pytest.TempPathFactory) -> None:
    from PIL import Image

    root = tmp_path_factory.mktemp("pictures")
    for label in "ab":
        (root / label).mkdir()
        for index in range(8):
            Image.new("RGB", (4, 4), (index, 0, 0)).save(root / label / f"{index}.png")

    def tested(seed: int) -> set[int]:
        split = open_data("folder", root=str(root), split_seed=seed, validation=0.0).test()
        return set(split.images[:][:, 0, 0, 0].tolist())

    assert len({frozenset(tested(seed)) for seed in range(6)}) > 1
