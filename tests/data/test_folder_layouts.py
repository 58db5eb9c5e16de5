"""How folders of images are laid out: what is a split, what is a class, what is passed over, and that it is said."""

import json
import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import Run, refused
from factor_transfer.data import Batches, describe, open_data
from factor_transfer.data.sets.folder import load_folder
from factor_transfer.data.sets.image_files import Skipped, list_images, printable
from factor_transfer.errors import InputError

CLASSES = ("apple", "pear", "plum")
STAGES = ("teacher", "paraphraser", "student")


def fill(folder: Path, each: int, seed: int = 0, classes: tuple[str, ...] = CLASSES, ending: str = "png") -> Path:
    """Noise, so that no two pictures are equal."""
    generator = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(each):
            pixels = generator.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.{ending}")
    return folder


def said(root: Path | str, **options: object) -> list[str]:
    """The overrides that have the tiny recipe train for an epoch on a folder."""
    more = "".join(f", {key}={json.dumps(value)}" for key, value in options.items())
    return [
        f"data={{name='folder', root='{root}'{more}}}",
        *(f"{stage}.batch_size=8" for stage in STAGES),
        *(f"{stage}.epochs=1" for stage in STAGES),
    ]


def data_lines(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith("data  ")]


def sizes(root: Path, **options: object) -> tuple[int, int, int]:
    data = open_data("folder", root=str(root), **options)  # type: ignore[arg-type]
    return len(data.train), len(data.validation), len(data.test())


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("Training", "Validation", "Testing"),
        ("TRAIN", "VALID", "TEST"),
        ("Train", "dev", "Test"),
        ("train_set", "validation-set", "test images"),
        ("train2017", "val2017", "test2017"),
    ],
)
def test_splits_are_known_by_their_usual_names(
    tiny: Path, run: Run, tmp_path: Path, train: str, val: str, test: str
) -> None:
    root = tmp_path / "fruit"
    fill(root / train, 8)
    fill(root / val, 3, seed=1)
    fill(root / test, 2, seed=2)
    result = run("teacher", tiny, *said(root))
    assert result.code == 0, result.err
    assert data_lines(result.out) == [
        f"data  folder in {root}: 3 classes (apple, pear, plum); 24 training images ({train}/), 9 validation images "
        f"({val}/, instead of data.validation = 0.1), 6 test images ({test}/); 8×8 pixels, 3 channels; on cpu"
    ]
    record = json.loads(Path("runs/tiny/teacher/stage.json").read_text())
    assert record["classes"] == list(CLASSES)


def test_a_validation_folder_is_the_validation_split(tmp_path: Path) -> None:
    fill(tmp_path / "train", 8)
    fill(tmp_path / "val", 3, seed=1, classes=("apple", "plum"))
    data = open_data("folder", root=str(tmp_path), validation=0.5, test_fraction=0.25)
    assert (len(data.train), len(data.test())) == (18, 6)  # of train/, of which no validation image is taken
    assert data.validation.labels.tolist() == [0] * 3 + [2] * 3
    first = np.array(Image.open(tmp_path / "val/apple/0.png"))
    assert torch.equal(data.validation.images[:][0], torch.from_numpy(first).permute(2, 0, 1))
    assert data.test_is_cut
    assert (
        "18 training images (train/), 6 validation images (val/, instead of data.validation = 0.5), "
        "6 test images (25 % of train/, as there is no test folder)" in describe(data)
    )
    before = data.fingerprint
    Image.new("RGB", (8, 8)).save(tmp_path / "val/apple/0.png")
    assert open_data("folder", root=str(tmp_path), test_fraction=0.25).fingerprint != before
    # A limit is of the training images alone.
    limited = open_data("folder", root=str(tmp_path), test_fraction=0.25, limit=9)
    assert (len(limited.train), len(limited.validation)) == (9, 6)
    assert "9 training images (train/, data.limit: 9 of 18), 6 validation images" in describe(limited)
    fill(tmp_path / "val", 1, classes=("grape",))
    with pytest.raises(InputError, match=r"val/grape: not a class of the training images; .*apple"):
        open_data("folder", root=str(tmp_path))


def test_class_folders_without_splits_are_divided_with_a_note(tiny: Path, run: Run, tmp_path: Path) -> None:
    root = fill(tmp_path / "fruit", 10)
    result = run("teacher", tiny, *said(root, validation=0.25))
    assert data_lines(result.out) == [
        f"data  folder in {root}: 3 classes (apple, pear, plum); 18 training images (fruit/), 6 validation images "
        "(25 % of the training images), 6 test images (20 % of fruit/, as there is no test folder); 8×8 pixels, "
        "3 channels; on cpu"
    ]


def test_classes_may_have_the_names_of_splits_below_train(tmp_path: Path) -> None:
    fill(tmp_path / "train", 8, classes=("train", "test", "tram"))
    fill(tmp_path / "test", 2, classes=("train", "test", "tram"))
    assert load_folder(root=str(tmp_path)).classes == ("test", "train", "tram")
    shutil.rmtree(tmp_path / "test")
    assert load_folder(root=str(tmp_path)).classes == ("test", "train", "tram")
    assert load_folder(root=str(fill(tmp_path / "other", 5, classes=("dev", "prod")))).classes == ("dev", "prod")


def twice(root: Path) -> None:
    fill(root / "Train", 4)
    fill(root / "training", 4)


def without_train(root: Path) -> None:
    fill(root, 4, classes=("valid", "invalid"))


def class_beside(root: Path) -> None:
    fill(root / "train", 4)
    fill(root, 4, classes=("grape",))


def train_is_a_class(root: Path) -> None:
    fill(root, 4, classes=("bus", "train", "tram"))


def unknown_split(root: Path) -> None:
    fill(root / "train", 4)
    fill(root / "holdout", 4)


def splits_within_classes(root: Path) -> None:
    for name in CLASSES:
        fill(root / name, 4, classes=("train", "test"))


def a_folder_too_high(root: Path) -> None:
    fill(root / "pictures" / "Train", 4)
    fill(root / "pictures" / "Test", 4)
    (root / "__MACOSX" / "pictures").mkdir(parents=True)


def one_folder_as_two_splits(root: Path) -> None:
    fill(root / "train", 4)
    (root / "test").symlink_to("train")


def one_folder_as_two_classes(root: Path) -> None:
    fill(root / "train", 4)
    (root / "train" / "prune").symlink_to("plum")


@pytest.mark.parametrize(
    ("lay", "message"),
    [
        (twice, r"two folders for one split, 'Train' and 'training'"),
        (without_train, r"a folder 'valid' but no folder 'train'; 'valid' is the name of a split, never of a class"),
        (class_beside, r"grape has images, but is beside the split 'train'; if it is a class, move it into .*/train"),
        (train_is_a_class, r"train: has no folders; .*'train' is the training split, never a class"),
        (
            unknown_split,
            r"holdout has folders of the same classes as 'train', but its name is not the name of a split; rename it",
        ),
        (splits_within_classes, r"apple would be a class, but contains folders that are splits \(test, train\)"),
        (a_folder_too_high, r"pictures would be a class, .* set data\.root=.*/pictures$"),
        (one_folder_as_two_splits, r"test and .*train are two splits, but a link makes them the same folder"),
        (one_folder_as_two_classes, r"plum and .*prune are two classes, but a link makes them the same folder"),
    ],
)
def test_a_folder_that_could_be_a_split_or_a_class_is_refused_by_name(
    tiny: Path, run: Run, tmp_path: Path, lay: Callable[[Path], None], message: str
) -> None:
    lay(tmp_path / "fruit")
    refused(run("teacher", tiny, *said(tmp_path / "fruit")), message)
    assert not Path("runs/tiny/teacher").exists()


def test_other_folders_beside_the_splits_are_skipped_and_named(tmp_path: Path) -> None:
    fill(tmp_path / "train", 4)
    fill(tmp_path / "test", 1, seed=1)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "train.csv").write_text("")
    assert "skipped: folders beside the splits: 1 (labels)" in describe(open_data("folder", root=str(tmp_path)))


def test_links_to_folders_are_followed_and_loops_skipped(tiny: Path, run: Run, tmp_path: Path) -> None:
    root = tmp_path / "fruit"
    fill(root / "train", 4)
    fill(tmp_path / "elsewhere", 10, seed=1)
    for name in CLASSES:
        (root / "train" / name / "more").symlink_to(tmp_path / "elsewhere" / name)
    (root / "train" / "pear" / "up").symlink_to("..")
    (root / "train" / "pear" / "self").symlink_to(".")
    (tmp_path / "elsewhere" / "plum" / "back").symlink_to(root)
    (root / "train" / "apple" / "again").symlink_to("more")
    (root / "train" / "apple" / "away").symlink_to("nowhere")
    (root / "train" / "apple" / "away.png").symlink_to("away.png")
    (root / "train" / "plum" / "one.png").symlink_to(tmp_path / "elsewhere" / "pear" / "0.png")
    shutil.move(root / "train" / "pear", tmp_path / "pear")
    (root / "train" / "pear").symlink_to(tmp_path / "pear")
    fill(root / "test", 1, seed=2)
    result = run("teacher", tiny, *said(root, validation=0))
    assert result.code == 0, result.err
    (line,) = data_lines(result.out)
    assert "43 training images" in line  # 3 x (4 + 10), and the link to a single picture
    assert "links to a folder that contains them: 3 (self, up, back)" in line.replace("(up, self", "(self, up")
    assert "folders that were reached by another path: 1 (more)" in line
    assert "broken links: 2 (away, away.png)" in line


def test_a_link_within_the_folder_changes_nothing(tmp_path: Path) -> None:
    """A loop was passed over before links were followed: what was trained on goes on being up to date."""
    fill(tmp_path / "train", 8)
    (tmp_path / "train" / "pear" / "deeper").mkdir()
    (tmp_path / "train" / "pear" / "0.png").rename(tmp_path / "train" / "pear" / "deeper" / "0.png")
    before = [open_data("folder", root=str(tmp_path), in_memory=place).fingerprint for place in (True, False)]
    (tmp_path / "train" / "pear" / "a link").symlink_to("deeper")
    (tmp_path / "train" / "pear" / "loop").symlink_to("..")
    assert before == [open_data("folder", root=str(tmp_path), in_memory=place).fingerprint for place in (True, False)]


def test_system_files_are_skipped_and_counted(tiny: Path, run: Run, tmp_path: Path) -> None:
    root = tmp_path / "fruit"
    for split in ("train", "test"):
        fill(root / split, 4, seed=len(split))
        fill(root / split / "@eaDir", 1)
        for name in CLASSES:
            place = root / split / name
            for system in ("@eaDir", ".thumbnails", "__MACOSX"):
                fill(place / system, 2, classes=("within",))
            shutil.copy(place / "0.png", place / "._0.png")
            (place / "Thumbs.db").write_text("")
            (place / ".DS_Store").write_text("")
    fill(root / "__MACOSX" / "train", 2)
    result = run("teacher", tiny, *said(root, validation=0))
    assert result.code == 0, result.err
    (line,) = data_lines(result.out)
    assert "3 classes (apple, pear, plum); 12 training images" in line
    assert "12 test images" in line
    # Six of each class of each split, one of each split, one of the root.
    assert "skipped: hidden or system files and folders: 39 (__MACOSX, @eaDir, .DS_Store); on cpu" in line


def test_files_that_are_no_images_are_counted_by_their_ending(tiny: Path, run: Run, tmp_path: Path) -> None:
    root = tmp_path / "fruit"
    fill(root / "train", 4)
    fill(root / "test", 4, seed=1)
    for index, name in enumerate(["a.txt", "b.TXT", "c.psd", "LICENSE", "d.e\x1b[2J", *(f"x.{n}" for n in range(5))]):
        (root / "train" / CLASSES[index % 3] / name).write_text("no image")
    fill(root, 1, classes=("train",))
    (root / "labels.csv").write_text("")
    result = run("teacher", tiny, *said(root, validation=0))
    assert result.code == 0, result.err
    (line,) = data_lines(result.out)
    assert "12 training images" in line
    assert (
        "skipped: files without an ending: 1 (LICENSE), images outside the folders of classes: 1 (0.png), .txt: 2, "
        ".0: 1, .1: 1, .2: 1, others: 5" in line
    )
    assert "\x1b" not in result.out


@pytest.mark.parametrize("ending", ["webp", "bmp", "tif", "TIFF", "gif", "jpe", "ppm", "jp2"])
def test_all_usual_formats_are_read(tiny: Path, run: Run, tmp_path: Path, ending: str) -> None:
    root = tmp_path / "fruit"
    fill(root / "train", 8, ending=ending)
    fill(root / "test", 1, seed=1)
    result = run("teacher", tiny, *said(root, validation=0))
    assert result.code == 0, result.err
    (line,) = data_lines(result.out)
    assert "24 training images" in line
    assert "skipped" not in line


def test_a_class_is_the_same_however_its_name_is_written(tiny: Path, run: Run, tmp_path: Path) -> None:
    root = tmp_path / "fruit"
    nfc, nfd = (unicodedata.normalize(form, "Äpfel é") for form in ("NFC", "NFD"))
    assert nfc != nfd
    fill(root / "train", 8, classes=(nfd, "pear", "zebra"))
    fill(root / "train", 2, seed=1, classes=(nfc,))  # two folders, one class
    fill(root / "test", 2, seed=2, classes=(nfc, "pear"))
    data = open_data("folder", root=str(root), validation=0)
    assert data.classes == ("pear", "zebra", nfc)
    assert data.train.labels.bincount().tolist() == [8, 8, 10]
    assert data.test().labels.bincount().tolist() == [2, 0, 2]
    assert run("teacher", tiny, *said(root)).code == 0
    assert run("test", tiny, "runs/tiny/teacher", *said(root)).code == 0
    # A network whose classes were written down before they were normalised.
    record = json.loads(Path("runs/tiny/teacher/stage.json").read_text())
    record["classes"] = ["pear", "zebra", nfd]
    Path("runs/tiny/teacher/stage.json").write_text(json.dumps(record))
    assert run("test", tiny, "runs/tiny/teacher", *said(root)).code == 0
    record["classes"] = ["pear", nfd, "zebra"]
    Path("runs/tiny/teacher/stage.json").write_text(json.dumps(record))
    refused(run("test", tiny, "runs/tiny/teacher", *said(root)), "was trained on .*, but this recipe's data has")


@pytest.mark.parametrize("what", [b"train/pl\xfcm", b"train/pear/d\xfcnn", b"train/pear/\xfc.png"])
def test_names_that_are_not_utf_8(tiny: Path, run: Run, tmp_path: Path, what: bytes) -> None:
    root = tmp_path / "fruit"
    fill(root / "train", 4)
    fill(root / "test", 1)
    path = root / os.fsdecode(what)
    if path.suffix:
        shutil.copy(root / "train/pear/0.png", path)
    else:
        shutil.copytree(root / "train/apple", path)
    refused(
        run("teacher", tiny, *said(root)), r"fruit/train/.*udcfc.*: its name is not UTF-8 \(b'.*\\xfc.*'\); rename it"
    )


def test_skipped_files_may_have_any_name(tiny: Path, run: Run, tmp_path: Path) -> None:
    root = fill(tmp_path / "fruit", 8)
    for name in (b"\xff.t\xfft", b".\xfe", b"x.\n\x07"):
        (root / "plum" / os.fsdecode(name)).write_text("")
    result = run("teacher", tiny, *said(root))
    assert result.code == 0, result.err
    assert r".t\udcfft: 1" in result.out
    assert r".\n\x07: 1" in result.out


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("put", [os.mkfifo, lambda path: Path(path).symlink_to("/dev/zero"), os.mkdir])
def test_something_else_in_the_place_of_an_image(
    tmp_path: Path, tiny: Path, run: Run, put: Callable[[Path], None], workers: int
) -> None:
    root = tmp_path / "fruit"
    fill(root / "train", 8)
    fill(root / "test", 1, seed=1)
    data = open_data("folder", root=str(root), in_memory=False, workers=workers)
    for path in (root / "train").rglob("*.png"):
        path.unlink()
        put(path)
    with pytest.raises(InputError, match=r"\.png is a .*, but a regular file is expected; remove it"):
        list(Batches(data.train, 8, 0).epoch(0))
    if put is os.mkdir:  # a folder may have any name
        refused(run("teacher", tiny, *said(root)), "apple: has no images")
    else:
        refused(run("teacher", tiny, *said(root)), r"apple/0\.png is a .*, but a regular file is expected; remove it")


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12)


@settings(max_examples=100)
@given(st.lists(NAMES.map(lambda name: f"{name}.png") | NAMES | st.just(".png"), max_size=6, unique=True))
def test_any_names_are_images_or_counted(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    folder = tmp_path_factory.mktemp("names")
    kept = []
    for name in names:
        if name in (".", "..") or len(name.encode()) > 250:
            continue
        (folder / name).write_text("")
        kept.append(name)
    skipped = Skipped()
    found = list_images(folder, skipped)
    assert found == sorted(found)
    assert len(found) + sum(skipped.counts.values()) == len(kept)
    assert printable(str(skipped)) == str(skipped)


def test_every_command_that_reads_images_describes_them_once(tiny: Path, run: Run, tmp_path: Path) -> None:
    root = tmp_path / "fruit"
    fill(root / "train", 8)
    fill(root / "test", 2, seed=1)
    few = said(root)
    commands = [
        ("check", tiny, *few),
        ("teacher", tiny, *few),
        ("pretrain", tiny, *few),
        ("train", tiny, *few),
        ("run", tiny, *few, "--baseline"),
        ("compare", tiny, *few, "--methods", "kd", "--seeds", "1"),
        ("test", tiny, "runs/tiny/teacher", *few),
    ]
    lines = set()
    for command in commands:
        result = run(*command)
        assert result.code == 0, result.err
        (line,) = data_lines(result.out)
        lines.add(line)
    assert len(lines) == 1


def test_the_descriptions_of_the_other_data_sets() -> None:
    grey = open_data("synthetic", train=60, limit=40, classes=7, validation=0, channels=1)
    assert describe(grey) == (
        "synthetic: 7 classes (pattern 0, pattern 1, pattern 2, pattern 3, pattern 4, …); 40 training images "
        "(data.limit: 40 of 60), 0 validation images (0 % of the training images), 32 test images; "
        "8×8 pixels, 1 channel"
    )
    assert "808 training images, 90 validation images (10 % of the training images), 899 test images" in describe(
        open_data("digits")
    )
    small = describe(open_data("fashion-mnist-small"))
    assert "5,400 training images, 600 validation images (10 % of the training images), 10,000 test images" in small
