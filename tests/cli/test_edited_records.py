"""Records that somebody has edited: exit code 2 and one message that names the file, or a right result."""

import copy
import json
import re
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import Outcome, Run, refused

STUDENT = "student-factor-seed0"
MEANT = ("mean", "std", "image", "classes")  # which may be edited to other values that make sense

Steps = tuple[str | int, ...]


@pytest.fixture(scope="module")
def place(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, a package, an exported file where that can be, a picture and the recipe."""
    from factor_transfer.cli import main

    folder = tmp_path_factory.mktemp("edited")
    shutil.copytree(digits_run, folder / "work")
    Image.new("L", (8, 8), 100).save(folder / "one.png")
    commands = [["package", folder / "work", "--out", folder / "shared"]]
    if find_spec("onnxruntime"):
        commands.append(["export", folder / "work", "--format", "onnx", "--out", folder / "device"])
    for command in commands:
        with pytest.raises(SystemExit, match=r"^0$"):
            main([str(word) for word in command])
    return folder


def paths(value: Any, steps: Steps = ()) -> Iterator[Steps]:
    """Where something stands in a record."""
    if steps:
        yield steps
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from paths(part, (*steps, key))


def edited(record: Any, steps: Steps, value: Any) -> Any:
    """The record with another value there; ``...`` takes it away."""
    record = copy.deepcopy(record)
    table = record
    for step in steps[:-1]:
        table = table[step]
    if value is ...:
        del table[steps[-1]]
    else:
        table[steps[-1]] = value
    return record


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.sampled_from([2**31, 2**63, 10**400, -0.0, 1e-320, 1e-30, 1e30, 1e308, float("nan"), float("inf")]),
    st.floats(-2, 2),
    st.text(max_size=8),
    st.sampled_from(["resnet8", "resnet20", "os:system", "timm:resnet18", "\x1b[2J", "[bold]", "../../x", "\x00", ""]),
)
VALUES = st.one_of(
    st.just(...),
    SCALARS,
    st.lists(SCALARS, max_size=11),
    st.dictionaries(st.sampled_from(["name", "width", "pretrained", "layer3", "a"]), SCALARS, max_size=3),
    st.lists(st.floats(0.1, 1), max_size=4),
    st.lists(st.text("abcdefghijk", min_size=1, max_size=3), min_size=8, max_size=12),
)
often = settings(max_examples=12)


def ends_well(result: Outcome, before: Outcome, same: bool) -> None:
    """One message, or what came out before; where an edit may mean something, at least a sound figure."""
    assert not set("\x1b\x00") & set(result.err + result.out)
    if result.code:
        refused(result)
        return
    assert "nan" not in result.out
    assert "inf" not in result.out
    if same:
        # What it was trained on may be said to be other images; that is a note, and changes nothing.
        assert [line for line in result.out.splitlines() if not line.startswith("Note: ")] == before.out.splitlines()


def tried(run: Run, file: Path, data: st.DataObject, *commands: list[str | Path]) -> None:
    """Edit a file at random, run the commands, and put it back."""
    whole = file.read_text()
    record = json.loads(whole)
    steps = data.draw(st.sampled_from(list(paths(record))))
    if data.draw(st.booleans()):
        steps = steps[:1]
    text = json.dumps(edited(record, steps, data.draw(VALUES)))
    if data.draw(st.integers(0, 9)) == 0:
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + data.draw(st.sampled_from(["", "[" * 5000, "NaN", '"', "}", ",", "\\ud800", "1e999"]))
    for command in commands:
        before = run(*command)
        assert before.code == 0, before.err
        file.write_text(text)
        try:
            ends_well(run(*command), before, not set(MEANT) & set(map(str, steps)))
        finally:
            file.write_text(whole)


@often
@given(data=st.data())
def test_a_stages_record(run: Run, place: Path, data: st.DataObject) -> None:
    stage = data.draw(st.sampled_from([STUDENT, "teacher"]))
    score: list[str | Path] = ["test", place / "work" / STUDENT / "recipe.toml", place / "work" / stage]
    ask: list[str | Path] = ["predict", place / "work" / STUDENT, place / "one.png", "--top", "10"]
    tried(run, place / "work" / stage / "stage.json", data, score, ask)


@often
@given(data=st.data())
def test_a_packages_record(run: Run, place: Path, data: st.DataObject) -> None:
    tried(run, place / "shared" / "config.json", data, ["predict", place / "shared", place / "one.png", "--top", "10"])


@often
@given(data=st.data())
def test_a_runs_summary(run: Run, place: Path, data: st.DataObject) -> None:
    tried(run, place / "work" / "summary.json", data, ["predict", place / "work", place / "one.png", "--top", "10"])


@settings(often, max_examples=8)
@given(data=st.data())
def test_a_run_that_is_resumed(run: Run, finished: Path, tmp_path: Path, tiny: Path, data: st.DataObject) -> None:
    """A stage whose record says something else is made anew, or refused."""
    work = Path(shutil.copytree(finished, tmp_path / "work", dirs_exist_ok=True))
    file = work / data.draw(st.sampled_from([STUDENT, "teacher", "paraphraser"])) / "stage.json"
    record = json.loads(file.read_text())
    steps = data.draw(st.sampled_from(list(paths(record))))
    file.write_text(json.dumps(edited(record, steps, data.draw(VALUES))))
    result = run("run", tiny, "--work-dir", work)
    if result.code:
        refused(result)
    else:
        assert "top-1 %" in result.out
        assert "nan" not in result.out
    shutil.rmtree(work)


@settings(often, max_examples=8)
@given(data=st.data())
def test_a_package_made_from_edited_records(run: Run, place: Path, data: st.DataObject) -> None:
    """A summary that says another figure is believed; what is written is sound."""
    files = ["summary.json", f"{STUDENT}/stage.json", "teacher/stage.json"]
    file = place / "work" / data.draw(st.sampled_from(files))
    whole = file.read_text()
    record = json.loads(whole)
    file.write_text(json.dumps(edited(record, data.draw(st.sampled_from(list(paths(record)))), data.draw(VALUES))))
    try:
        result = run("package", place / "work", "--out", "out")
    finally:
        file.write_text(whole)
    if result.code:
        refused(result)
        assert not Path("out").exists()
    else:
        assert not re.search(r"\bnan\b", Path("out/README.md").read_text(), re.IGNORECASE)
        shutil.rmtree("out")


@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="the extra onnx is not installed")
@settings(often, max_examples=8)
@given(data=st.data())
def test_an_exported_files_record(run: Run, place: Path, data: st.DataObject) -> None:
    ask: list[str | Path] = ["predict", place / "device" / "student.onnx", place / "one.png", "--top", "10"]
    tried(run, place / "device" / "export.json", data, ask)


@often
@given(data=st.data())
def test_a_damaged_holder_file_does_not_block_the_work_dir(run: Run, place: Path, data: st.DataObject) -> None:
    """Whatever it says: it is only for a message."""
    holder = place / "work" / ".holder.json"
    record = {"process": 1, "host": "a", "since": "b", "command": "c", "token": "d"}
    text = json.dumps(edited(record, data.draw(st.sampled_from(list(paths(record)))), data.draw(VALUES)))
    holder.write_text(data.draw(st.sampled_from([text, "[" * 200_000, '{"a":' * 100_000, "", "NaN"])))
    from factor_transfer.pipeline.lock import hold

    with hold(place / "work"):
        pass


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("mean", [float("nan")], "not finite"),
        ("std", [0.0], "mean .* and std .*: all values must be finite, and those of std above 0"),
        ("std", [1e-320], "all values must be finite"),
        ("std", [-0.5], "all values must be finite"),
        ("std", [0.5, 0.5], "mean and std have 1 and 2 values, but the images have 1 channels"),
        ("mean", [], "mean and std have 0 and 1 values"),
        ("mean", [10**400], "mean"),
        ("mean", [True], r"mean\.0: Input should be a valid number, got True"),
        ("mean", ["0.5"], r"mean\.0: Input should be a valid number, got '0\.5'"),
        ("classes", [str(number) for number in range(9)], "classes has 9 names, but the network has 10 logits"),
        ("classes", [str(number) for number in range(11)], "classes has 11 names, but the network has 10 logits"),
        ("classes", ["0"] * 10, "classes contains a name twice"),
        ("classes", "0123456789", "classes: Input should be a valid list"),
        ("image", [1, 8], "image"),
        ("image", [3, 8, 8], "image has 3 channels, but the network takes 1"),
        ("image", [1, 8, 10**9], r"image\.2"),
        ("image", [1, 8.0, 8], r"image\.1"),
        ("weights_sha256", None, "weights_sha256"),
        ("model", {"name": "resnet8", "num_classes": 10, "in_channels": 1, "width": 10**6}, "width|do not fit"),
        ("model", {"name": "resnet8", "num_classes": 10, "in_channels": 1, "width": 10**30}, "cannot be built"),
        (
            "model",
            {"name": "resnet8", "num_classes": 10, "in_channels": 1, "pretrained": True},
            "'pretrained' is not a valid arg",
        ),
        (
            "model",
            {"name": "timm:resnet18", "num_classes": 10, "in_channels": 1, "block": 3},
            "cannot be built|do not fit",
        ),
    ],
)
def test_faults_are_reported(run: Run, place: Path, key: str, value: Any, message: str) -> None:
    """By file and key, of a stage's record and of a package's."""
    for file, command in (
        (place / "work" / STUDENT / "stage.json", ["predict", place / "work" / STUDENT]),
        (place / "shared" / "config.json", ["predict", place / "shared"]),
    ):
        whole = file.read_text()
        file.write_text(json.dumps(json.loads(whole) | {key: value}))
        try:
            refused(run(*command, place / "one.png"), file.name.replace(".", r"\.") + "|safetensors", message)
        finally:
            file.write_text(whole)


def test_the_weights_of_the_last_epoch_are_checked_too(work: Path, tiny: Path, run: Run) -> None:
    """Without their sum another epoch's weights would stand for them in silence."""
    path = work / STUDENT / "stage.json"
    shutil.copy(work / STUDENT / "weights.safetensors", work / STUDENT / "last.safetensors")
    path.write_text(
        json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "last_sha256"})
    )
    refused(
        run("test", tiny, work / STUDENT / "last.safetensors"),
        "last_sha256, the SHA-256 of last.safetensors, is missing",
    )
