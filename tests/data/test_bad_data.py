"""Bad data: one clear message on one screen, exit code 2, no traceback, nothing lost."""

import shutil
from pathlib import Path

from PIL import Image

from conftest import Run, refused


def test_a_missing_data_file(tiny: Path, tmp_path: Path, run: Run) -> None:
    refused(run("teacher", tiny, "data={name='cifar10', root='nowhere'}"), "nowhere", r"data\.root", r"download=true")
    refused(run("teacher", tiny, "data={name='folder', root='nowhere'}"), "nowhere")


def cifar(folder: Path) -> Path:
    (folder / "cifar-10-batches-bin").mkdir(parents=True)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        records = bytearray((1 + 3072) * 10)
        records[:: 1 + 3072] = bytes(range(10))
        (folder / "cifar-10-batches-bin" / f"{name}.bin").write_bytes(records)
    return folder


def test_a_truncated_or_corrupted_data_file(tiny: Path, tmp_path: Path, run: Run) -> None:
    override = f"data={{name='cifar10', root='{cifar(tmp_path / 'c')}'}}"
    batch = tmp_path / "c" / "cifar-10-batches-bin" / "data_batch_3.bin"
    whole = batch.read_bytes()
    batch.write_bytes(whole[:-1])
    refused(run("teacher", tiny, override), r"data_batch_3\.bin: has 30,729 bytes")
    batch.write_bytes(b"\x0b" + whole[1:])
    refused(run("teacher", tiny, override), r"data_batch_3\.bin: image 0 has label 11")
    batch.unlink()
    refused(run("teacher", tiny, override), r"data_batch_3\.bin missing")


def pictures(folder: Path, sizes: tuple[int, ...] = (8,)) -> str:
    for label in "ab":
        (folder / label).mkdir(parents=True)
        for index in range(20):
            side = sizes[index % len(sizes)]
            Image.new("RGB", (side, side), (index, 0, 0)).save(folder / label / f"{index}.png")
    return f"data={{name='folder', root='{folder}'}}"


def test_a_corrupted_image(tiny: Path, tmp_path: Path, run: Run) -> None:
    override = pictures(tmp_path / "p")
    for content in (b"no image", (tmp_path / "p" / "a" / "3.png").read_bytes()[:40]):
        for index in range(20):  # wherever the split puts them
            (tmp_path / "p" / "a" / f"{index}.png").write_bytes(content)
        refused(run("teacher", tiny, override), r"p/a/\d+\.png: cannot be read as an image")


def test_an_empty_class_folder(tiny: Path, tmp_path: Path, run: Run) -> None:
    override = pictures(tmp_path / "p")
    (tmp_path / "p" / "c").mkdir()
    refused(run("teacher", tiny, override), "p/c: has no images")


def test_images_of_differing_sizes_without_size(tiny: Path, tmp_path: Path, run: Run) -> None:
    refused(run("teacher", tiny, pictures(tmp_path / "p", (8, 9))), r"8×8.*9×9|9×9.*8×8", r"data\.size")


def test_one_class_or_a_class_without_training_images(tiny: Path, tmp_path: Path, run: Run) -> None:
    override = pictures(tmp_path / "p")
    shutil.rmtree(tmp_path / "p" / "b")
    refused(run("teacher", tiny, override), "only one class, 'a'")
    refused(run("teacher", tiny, "data.limit=3"), "no training image of class 'pattern .*' is left")


def test_testing_on_images_that_may_have_been_trained_on(tiny: Path, tmp_path: Path, run: Run) -> None:
    override, small = (
        pictures(tmp_path / "p"),
        ["teacher.batch_size=8", "paraphraser.batch_size=8", "student.batch_size=8"],
    )
    assert run("teacher", tiny, override, *small).code == 0
    assert run("test", tiny, "runs/tiny/teacher", override).code == 0
    refused(run("test", tiny, "runs/tiny/teacher", override, "data.split_seed=1"), "another split of the images")


def test_other_channels(finished: Path, tiny: Path, run: Run) -> None:
    refused(run("test", tiny, finished / "teacher", "data.channels=1"), "takes images of 3 channels, .* have 1")


def test_a_batch_larger_than_the_training_set(tiny: Path, run: Run) -> None:
    refused(run("run", tiny, "student.batch_size=73"), "student.batch_size is 73, larger .* of 72 images")
    assert not Path("runs/tiny/teacher").exists()
