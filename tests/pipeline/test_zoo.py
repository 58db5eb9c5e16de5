"""What comes with the package, trained."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from conftest import CIFAR10, Run, needs_cifar10, refused
from factor_transfer import load_student
from factor_transfer.data.sets.cifar.load import load_cifar10
from factor_transfer.errors import InputError
from factor_transfer.methods import Paraphraser
from factor_transfer.pipeline.artefact import find
from factor_transfer.pipeline.weights import zoo
from factor_transfer.state_dicts import load_into
from factor_transfer.training.evaluate import top

ENTRIES = zoo.entries()
HERE = [name for name, entry in ENTRIES.items() if entry.is_here]
NETWORKS = [name for name in HERE if ENTRIES[name].top1 is not None]


@pytest.mark.parametrize("name", HERE)
def test_files_match_their_checksums(name: str) -> None:
    zoo.check(ENTRIES[name])
    files = {path.name for path in ENTRIES[name].folder.iterdir()}
    assert {"weights.safetensors", "stage.json", "metrics.jsonl"} <= files


def test_the_zoo_is_small() -> None:
    folder = zoo.place()
    assert folder is not None
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20e6
    listed = {line.split("  ", 1)[1] for line in (folder / zoo.SUMS).read_text().splitlines()}
    assert listed == {path.relative_to(folder).as_posix() for path in files if path.parent != folder}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_loaded_by_its_name(name: str) -> None:
    student = load_student(name)
    assert not student.training
    assert len(student.classes) == 10
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    assert student(images).shape == (2, 10)
    assert ENTRIES[name].network in str(find(ENTRIES[name].folder).record["model"]["name"])  # type: ignore[union-attr]


@pytest.mark.parametrize("name", [name for name in HERE if name not in NETWORKS])
def test_a_paraphraser_is_one(name: str) -> None:
    done = find(ENTRIES[name].folder)
    assert done is not None
    (channels,) = done.record["in_channels"].values()
    load_into(Paraphraser(channels, rate=done.record["inputs"]["paraphraser"]["rate"]), done.state(), done.weights)
    with pytest.raises(InputError, match="contains a paraphraser"):
        load_student(name)


def accuracy(name: str, count: int) -> dict[str, float]:
    student, test = load_student(name), load_cifar10(root=str(CIFAR10)).test()
    assert isinstance(test.images, torch.Tensor)
    with torch.no_grad():
        logits = torch.cat([student(images) for images in test.images[:count].split(500)])
    return top(logits, test.labels[:count])


@needs_cifar10
def test_the_smallest_network_reaches_its_recorded_accuracy() -> None:
    name = "cifar10/resnet20-resnet8/student-alone-seed1"
    found = accuracy(name, 10_000)
    # Another processor rounds differently: an image or two may change sides.
    assert found["top1"] == pytest.approx(ENTRIES[name].top1, abs=0.03)
    assert found["top5"] == pytest.approx(ENTRIES[name].top5, abs=0.03)


@needs_cifar10
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_as_good_on_some_images_as_recorded(name: str) -> None:
    """On 500 images, within three standard errors of the recorded accuracy."""
    expected = ENTRIES[name].top1
    assert expected is not None
    error = (expected * (100 - expected) / 500) ** 0.5
    assert accuracy(name, 500)["top1"] == pytest.approx(expected, abs=3 * error)


def test_show_zoo(run: Run) -> None:
    shown = run("show", "zoo")
    assert shown.code == 0
    assert [name for name in ENTRIES if name not in shown.out] == []


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoo of its own, to be changed."""
    folder = zoo.place()
    assert folder is not None
    copied = Path(shutil.copytree(folder, tmp_path / "zoo"))
    monkeypatch.setattr(zoo, "place", lambda: copied)
    return copied


def test_faults_are_reported(copy: Path) -> None:
    name = NETWORKS[0]
    with pytest.raises(InputError, match=f"did you mean .*{name}"):
        load_student(f"{name}x")
    weights = copy / name / "weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match="is damaged: its SHA-256 differs from the one in SHA256SUMS"):
        load_student(name)
    weights.unlink()
    with pytest.raises(InputError, match="is missing"):
        load_student(name)
    shutil.rmtree(copy / name)
    with pytest.raises(InputError, match=f"too large to come with the package; to train it: {ENTRIES[name].command}"):
        load_student(name)


def test_without_sums(copy: Path) -> None:
    sums = copy / zoo.SUMS
    lines = sums.read_text().splitlines(keepends=True)
    sums.write_text("".join(line for line in lines if not line.endswith(f"{NETWORKS[0]}/weights.safetensors\n")))
    with pytest.raises(InputError, match="SHA256SUMS does not list the SHA-256 of"):
        load_student(NETWORKS[0])
    sums.unlink()
    with pytest.raises(InputError, match=r"cannot read .*SHA256SUMS"):
        load_student(NETWORKS[0])


STUDENT = next(name for name in NETWORKS if "/student-" in name)


def test_a_student_of_the_zoo_is_a_run(run: Run, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in ENTRIES[STUDENT].folder.rglob("*")}
    picture = tmp_path / "one.png"
    Image.new("RGB", (32, 32), "green").save(picture)
    said = run("predict", STUDENT, picture)
    assert said.code == 0, said.err
    assert "%" in said.out
    packed = run("package", STUDENT, "--out", tmp_path / "packed")
    assert packed.code == 0, packed.err
    assert load_student(tmp_path / "packed").classes == load_student(STUDENT).classes
    refused(run("export", STUDENT), "is a network of the zoo, which is not written to; give a folder with --out")
    assert {path: path.stat().st_mtime_ns for path in ENTRIES[STUDENT].folder.rglob("*")} == before


@pytest.mark.parametrize(
    "content", ['{"a": {"network": "x", "top1": "high"}}', "[]", '{"a": 1}', '{"a": {"network": "x"}}', "{"]
)
def test_a_damaged_list(copy: Path, content: str, run: Run) -> None:
    (copy / zoo.INDEX).write_text(content)
    refused(run("show", "zoo"), "zoo.json")


def test_a_finished_stage_is_loaded_by_its_folder(finished: Path) -> None:
    student = load_student(finished / "teacher")
    assert student(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)).shape[0] == 1
    with pytest.raises(InputError, match="contains a paraphraser"):
        load_student(finished / "paraphraser")
