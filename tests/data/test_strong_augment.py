"""Strong changes of the student's images: each against its definition, one image at a time."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import Run
from factor_transfer.data.augment.strong import DRAWS, GEOMETRIC, PHOTOMETRIC, StrongAugment, change
from factor_transfer.methods import Teacher

IMAGES = torch.randint(0, 256, (6, 3, 8, 10), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def draws(
    shape: str = "none", colour: str = "none", strength: float = 0.5, amount: float = 0.5, side: float = 0.0
) -> Tensor:
    row = [
        (GEOMETRIC.index(shape) + 0.5) / len(GEOMETRIC),
        (PHOTOMETRIC.index(colour) + 0.5) / len(PHOTOMETRIC),
        *(strength, amount, side, 0.5, 0.5),
    ]
    return torch.tensor([row]).expand(len(IMAGES), DRAWS)


def test_changes_of_zero_strength_change_nothing() -> None:
    assert torch.equal(change(IMAGES, draws()), IMAGES)


def test_a_shift_is_one_of_whole_pixels() -> None:
    moved = change(IMAGES, draws("translate_x", strength=0.9))  # 0.8 * 0.5 of half the width: 2 of 10 pixels
    assert torch.equal(moved[..., :-2], IMAGES[..., 2:])
    assert not moved[..., -2:].any()
    moved = change(IMAGES, draws("translate_y", strength=0.0))  # a quarter of the height
    assert torch.equal(moved[..., 2:, :], IMAGES[..., :-2, :])


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "scale"])
def test_the_centre_of_an_image_stays_where_it_is(name: str) -> None:
    flat = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    flat[..., 4, 4] = 200
    for strength in (0.0, 0.9):
        changed = change(flat, draws(name, strength=strength)[:1])
        assert changed[0, 0, 4, 4] == 200
    assert not torch.equal(change(IMAGES, draws(name, strength=0.9)), IMAGES)
    assert torch.equal(change(IMAGES, draws(name, strength=0.5)), IMAGES)


def test_a_rotation_turns_by_at_most_30_degrees() -> None:
    line = torch.zeros(1, 1, 21, 21, dtype=torch.uint8)
    line[..., 10, :] = 255
    turned = change(line, draws("rotate", strength=1.0)[:1])[0, 0].float()
    rows, columns = torch.meshgrid(torch.arange(21.0) - 10, torch.arange(21.0) - 10, indexing="ij")
    weight = turned / turned.sum()
    slope = (weight * rows * columns).sum() / (weight * columns * columns).sum()
    assert abs(slope.atan().rad2deg()) == pytest.approx(30, abs=2)


def by_hand(name: str, image: Tensor, strength: float) -> Tensor:
    x, factor = image.double(), 1 + 0.8 * strength
    if name == "brightness":
        return x * factor
    if name == "contrast":
        return x.mean() + (x - x.mean()) * factor
    if name == "saturation":
        return x.mean(0) + (x - x.mean(0)) * factor
    if name == "posterize":
        bits = 1 + int(3.999 * abs(strength))
        return torch.tensor([[[int(v) >> bits << bits for v in row] for row in channel] for channel in image])
    return torch.where(x >= 255 * (1 - 0.6 * abs(strength)), 255 - x, x)


@pytest.mark.parametrize("name", PHOTOMETRIC[1:])
@pytest.mark.parametrize("amount", [0.0, 0.4, 0.95])
def test_each_change_of_colours(name: str, amount: float) -> None:
    changed = change(IMAGES, draws(colour=name, amount=amount))
    for image, found in zip(IMAGES, changed, strict=True):
        expected = by_hand(name, image, 2 * amount - 1).clamp(0, 255)
        assert (found.double() - expected).abs().max() <= 0.51


def test_a_square_is_blanked_out() -> None:
    hidden = change(IMAGES, draws(side=1.0)) != IMAGES
    assert not hidden[..., :2, :].any()
    assert not hidden[..., -2:, :].any()
    assert hidden[:, :, 2:6, 3:7].float().mean() > 0.95  # half of each side, 2.5 to 7.5 of the width
    assert torch.equal(change(IMAGES, draws(side=0.0)), IMAGES)


def test_images_of_a_batch_are_changed_differently_and_only_in_training() -> None:
    same, strong = IMAGES[:1].expand(64, 3, 8, 10), StrongAugment()
    torch.manual_seed(1)
    first = strong(same)
    torch.manual_seed(1)
    assert torch.equal(strong(same), first)
    assert len({image.numpy().tobytes() for image in first}) > 55
    assert torch.equal(strong.eval()(same), same)
    assert change(IMAGES[:, :1], torch.rand(6, DRAWS)).shape == (6, 1, 8, 10)


def test_the_student_sees_changed_images_and_its_teacher_does_not(
    tiny: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, seen = Teacher.forward, []

    def noted(self: Teacher, images: Tensor) -> object:
        seen.append(images)
        return forward(self, images)

    given = [tiny, "augment={student='strong'}", "student.epochs=1", "teacher.epochs=1", "paraphraser.epochs=1"]
    plain = [tiny, "augment={}", "student.epochs=1", "teacher.epochs=1", "paraphraser.epochs=1"]
    assert run("run", *plain).code == 0
    changes: list[Tensor] = []

    def unchanged(images: Tensor, draws: Tensor) -> Tensor:
        changes.append(images)
        return images

    monkeypatch.setattr("factor_transfer.data.augment.strong.change", unchanged)
    monkeypatch.setattr(Teacher, "forward", noted)
    again = run("run", *given)
    assert again.code == 0, again.err
    assert "teacher  up to date" in again.out
    assert "paraphraser  up to date" in again.out
    assert "student-factor-seed0  runs again because its inputs changed (augment.student" in again.out
    trained = [images for images in seen if len(images) == 24]
    assert len(changes) >= len(trained) == 3
    assert all(any(torch.equal(images, other) for other in changes) for images in trained)


def test_a_stopped_training_with_strong_changes_resumes_to_the_same_bytes(tiny: Path, run: Run) -> None:
    given = ["augment={student='strong'}", "student.epochs=2", "teacher.epochs=1", "paraphraser.epochs=1"]
    assert run("run", tiny, *given, "--work-dir", "one").code == 0
    assert run("run", tiny, *given, "--work-dir", "two").code == 0
    weights = [Path(work, "student-factor-seed0/weights.safetensors").read_bytes() for work in ("one", "two")]
    assert weights[0] == weights[1]
