"""What `predict` says: the same by the run, its weights, the package and the exported files."""

import io
import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from conftest import Run, refused
from factor_transfer.data import open_data
from factor_transfer.models import Normalize
from factor_transfer.pipeline.artefact import find
from factor_transfer.pipeline.experiment import load_network

STUDENT = "student-factor-seed0"
COUNT = 70  # more than a batch


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits of the test split as files, in two folders."""
    folder = tmp_path_factory.mktemp("pictures")
    images = open_data("digits").test().images[:COUNT]
    for index, image in enumerate(images):
        place = folder / ("first" if index < 40 else "second")
        place.mkdir(exist_ok=True)
        Image.fromarray(image[0].numpy()).save(place / f"{index:03}.png")
    return folder


def asked(run: Run, *arguments: str | Path) -> list[dict[str, Any]]:
    result = run("predict", *arguments, "--json")
    assert result.code == 0, result.err
    found: list[dict[str, Any]] = json.loads(result.out)
    return found


def test_a_folder_by_the_run(digits_run: Path, pictures: Path, run: Run) -> None:
    """Against the network itself, image by image."""
    done = find(digits_run / STUDENT)
    assert done is not None
    model = load_network(done).eval()
    with torch.no_grad():
        images = Normalize(done.record["mean"], done.record["std"])(open_data("digits").test().images[:COUNT])
        probabilities = model(images).softmax(1)
    found = asked(run, digits_run, pictures, "--top", "3")
    assert [Path(each["image"]).name for each in found] == [f"{index:03}.png" for index in range(COUNT)]
    for each, expected in zip(found, probabilities, strict=True):
        assert not each["resized"]
        values, classes = expected.topk(3)
        assert [one["class"] for one in each["top"]] == [str(index) for index in classes.tolist()]
        assert [one["probability"] for one in each["top"]] == pytest.approx(values.tolist(), abs=1e-4)
    assert asked(run, digits_run / STUDENT / "weights.safetensors", pictures, "--top", "3") == found
    assert all(len(each["top"]) == 10 for each in asked(run, digits_run, pictures / "second", "--top", "99"))


def test_names_on_standard_input(
    digits_run: Path, pictures: Path, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    odd = tmp_path / os.fsdecode(b"odd \xe9\x0c.png")
    shutil.copy(pictures / "first" / "002.png", odd)
    paths = [pictures / "first" / "002.png", odd, pictures / "first" / "000.png"]
    lines = b"".join(os.fsencode(path) + end for path, end in zip(paths, (b"\n", b"\r\n", b""), strict=True))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))
    assert [each["image"] for each in asked(run, digits_run, "-")] == [str(path) for path in paths]


def test_a_run_is_found_from_inside_its_folders(
    digits_run: Path, pictures: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = asked(run, digits_run, pictures / "first" / "000.png")
    monkeypatch.chdir(digits_run / STUDENT)
    for network in (".", "weights.safetensors", ".."):
        assert asked(run, network, pictures / "first" / "000.png") == expected
    assert run("test", ".").code == 0
    monkeypatch.chdir(digits_run / "teacher")
    assert run("test", ".").code == 0


def test_lines_for_people(digits_run: Path, pictures: Path, run: Run) -> None:
    result = run("predict", digits_run, pictures / "first" / "000.png", "--top", "2")
    (line,) = result.out.splitlines()
    (each,) = asked(run, digits_run, pictures / "first" / "000.png", "--top", "2")
    assert line.startswith(f"{pictures}/first/000.png  ")
    for one in each["top"]:
        assert f"{one['class']} {one['probability']:.2%}" in line


def test_an_image_of_another_size_is_scaled_with_a_note(
    digits_run: Path, pictures: Path, run: Run, tmp_path: Path
) -> None:
    with Image.open(pictures / "first" / "000.png") as image:
        image.resize((24, 24), Image.Resampling.NEAREST).save(tmp_path / "large.png")
    result = run("predict", digits_run, tmp_path / "large.png", pictures / "first" / "000.png", "--json")
    large, own = json.loads(result.out)
    assert (large["resized"], own["resized"]) == (True, False)
    assert large["top"][0]["class"] == own["top"][0]["class"]
    assert "Note: 1 of 2 images were scaled and centre-cropped to 8×8 pixels" in result.err


@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="the extra onnx is not installed")
def test_an_exported_file_and_a_package(digits_run: Path, pictures: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("export", digits_run, "--format", "onnx", "--out", out).code == 0
    assert run("package", digits_run, "--out", tmp_path / "shared").code == 0
    expected = asked(run, digits_run, pictures)
    for network in (out / "student.onnx", tmp_path / "shared"):
        for each, own in zip(asked(run, network, pictures), expected, strict=True):
            assert each["top"][0]["class"] == own["top"][0]["class"]
            probabilities = [[one["probability"] for one in said["top"]] for said in (each, own)]
            assert probabilities[0] == pytest.approx(probabilities[1], abs=1e-4)
    # Another student's file in its place.
    (out / "student.onnx").write_bytes((out / "student.onnx").read_bytes() + b"\n")
    refused(run("predict", out / "student.onnx", pictures), "was exported from another student, or has changed since")
    (out / "export.json").unlink()
    refused(run("predict", out / "student.onnx", pictures), r"export\.json is missing")


def save(image: Image.Image, path: Path) -> Path:
    image.save(path)
    return path


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("RGB", r"has 3 channels \(RGB\), but the network takes 1"),
        ("LA", r"has 2 channels \(LA\), one of them alpha"),
        ("RGBA", r"has 4 channels \(RGBA\), one of them alpha"),
        ("I;16", "does not have 8 bits per channel"),
    ],
)
def test_unsuitable_images_are_refused(digits_run: Path, run: Run, tmp_path: Path, mode: str, message: str) -> None:
    path = save(Image.new(mode, (8, 8)), tmp_path / "odd.png")
    refused(run("predict", digits_run, path), message)
    converted = run("predict", digits_run, path, "--convert")
    assert (converted.code == 0) == (mode != "I;16")


def test_grey_cmyk_and_16_bits_where_colour_is_wanted(finished: Path, run: Run, tmp_path: Path) -> None:
    refused(run("predict", finished, save(Image.new("L", (8, 8)), tmp_path / "l.png")), r"has 1 channel \(L\)")
    refused(run("predict", finished, save(Image.new("CMYK", (8, 8)), tmp_path / "c.jpg")), r"has 4 channels \(CMYK\)")


def test_files_that_are_no_images_are_refused(digits_run: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    refused(run("predict", digits_run, tmp_path / "text.png"), r"text\.png: cannot be read as an image")
    huge = save(Image.new("L", (9500, 9500)), tmp_path / "huge.png")
    refused(run("predict", digits_run, huge), r"huge\.png: refused: .* exceeds limit")
    refused(run("predict", digits_run, tmp_path / "nowhere.png"), r"the image .*nowhere\.png does not exist")
    (tmp_path / "empty").mkdir()
    refused(run("predict", digits_run, tmp_path / "empty"), "empty has no images")


def test_a_folder_is_read_as_training_images_are(digits_run: Path, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    names = ["a.webp", "b.bmp", os.fsdecode(b"\xfc.png")]
    for name in names[:2]:
        save(Image.new("L", (8, 8)), folder / name)
    for name in ("._a.png", "@eaDir/a.png", ".thumbnails/b.png", "notes.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("no image")
    found = json.loads(run("predict", digits_run, folder, "--json", "--convert").out)
    assert [Path(each["image"]).name for each in found] == names[:2]
    # A name that is not text, given by itself.
    save(Image.new("L", (8, 8)), folder / "x.png").rename(folder / names[2])
    result = run("predict", digits_run, folder / names[2])
    assert result.code == 0, result.err
    assert r"mixed/\udcfc.png  " in result.out
    (told,) = json.loads(run("predict", digits_run, folder / names[2], "--json").out)
    assert told["image"] == str(folder / names[2])
    refused(run("predict", digits_run, folder), r"mixed/.udcfc\.png: its name is not UTF-8")
    refused(run("predict", digits_run, folder / os.fsdecode(b"\xfe.png")), r"the image .*udcfe\.png does not exist")
    os.mkfifo(folder / "fifo.png")
    refused(run("predict", digits_run, folder / "fifo.png"), r"the image .*fifo\.png does not exist")


def test_files_that_are_no_networks_are_refused(digits_run: Path, run: Run, tmp_path: Path, pictures: Path) -> None:
    refused(run("predict", tmp_path / "nowhere", pictures), "nowhere does not exist; give the folder")
    refused(run("predict", tmp_path / "nowhere.pte", pictures), r"the file .*nowhere\.pte does not exist")
    refused(run("predict", digits_run / "teacher", pictures), "contains a teacher, not a student")
