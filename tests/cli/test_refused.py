"""Files that mean harm, or are damaged, given as a person gives them: refused by name, and nothing of them runs."""

import json
import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import Run, refused
from factor_transfer.errors import InputError
from factor_transfer.files import read_json
from factor_transfer.pipeline import artefact
from factor_transfer.state_dicts import read_weights

STATE = {"a": torch.arange(8.0), "b": torch.tensor([[1, 2], [3, 4]])}


class Runs:
    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


@pytest.mark.parametrize("name", ["evil.pth", "evil.pt", "evil.safetensors", "plain.pth"])
def test_a_pickle_as_weights_does_not_run(name: str, tiny: Path, run: Run) -> None:
    if name.startswith("plain"):
        Path(name).write_bytes(pickle.dumps({"a": Runs()}))
    else:
        torch.save({"state_dict": {"a": torch.ones(1)}, "optimizer": Runs()}, name)
    for command in (["run", tiny, f"teacher.weights={name}"], ["test", tiny, name]):
        refused(run(*command), rf"weights {name} are damaged")
    assert not Path("ran").exists()


def test_a_pickle_as_a_cifar_batch_does_not_run(tiny: Path, run: Run) -> None:
    folder = Path("cifar-10-batches-py")
    folder.mkdir()
    for batch in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        (folder / batch).write_bytes(pickle.dumps({"data": Runs(), "labels": [1]}))
    refused(
        run("teacher", tiny, "data={name='cifar10', root='.'}"), r"data_batch_1: refused, .* refers to posix\.system"
    )
    assert not Path("ran").exists()


def test_an_archive_of_weights_that_unpacks_to_more_than_its_size(tiny: Path, run: Run) -> None:
    torch.save({"a": torch.zeros(100_000)}, "large.pth")
    with zipfile.ZipFile("large.pth") as large, zipfile.ZipFile("bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
        for entry in large.infolist():
            bomb.writestr(entry.filename, large.read(entry))
    refused(run("test", tiny, "bomb.pth"), r"weights bomb\.pth are damaged.*its content is larger than the file")
    assert torch.equal(read_weights(Path("large.pth"))["a"], torch.zeros(100_000))


def test_a_decompression_bomb(tiny: Path, run: Run) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)  # ten gigabytes
    image = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100)))
    for label in "ab":
        Path("images", label).mkdir(parents=True)
        for number in range(4):
            Path("images", label, f"{number}.png").write_bytes(image)
    refused(run("teacher", tiny, "data={name='folder', root='images'}"), r"\.png: refused")


def lying(**tensor: Any) -> bytes:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **tensor}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(8)


@pytest.mark.parametrize(
    "content",
    [
        lying(shape=[2**40]),
        lying(shape=[-2]),
        lying(shape=[2**62, 2**62]),
        lying(data_offsets=[0, 2**50]),
        lying(data_offsets=[8, 0]),
        lying(data_offsets=[4, 12]),
        lying(dtype="F65"),
        lying(shape="x"),
        struct.pack("<Q", 2**63) + lying()[8:],
        struct.pack("<Q", 2**20) + lying()[8:],
        struct.pack("<Q", 5_000) + b"[" * 5_000,
        b"",
    ],
)
def test_a_header_with_false_sizes(content: bytes, tiny: Path, run: Run) -> None:
    assert read_lying(lying()).keys() == {"a"}
    Path("w.safetensors").write_bytes(content)
    refused(run("test", tiny, "w.safetensors"), r"weights w\.safetensors are damaged")


def read_lying(content: bytes) -> dict[str, torch.Tensor]:
    Path("w.safetensors").write_bytes(content)
    return read_weights(Path("w.safetensors"))


def test_records_nested_deeply_or_huge(work: Path, tiny: Path, run: Run) -> None:
    record = work / "teacher" / "stage.json"
    inputs: Any = 1
    for _ in range(200):  # which the parser takes
        inputs = {"a": inputs}
    for text in ("[" * 200_000, json.dumps({"finished": True, "inputs": inputs}), "[" * 60 + "]" * 60):
        record.write_text(text)
        refused(run("run", tiny, "--work-dir", work), r"cannot read .*teacher/stage\.json: it is nested too deeply")
    with record.open("wb") as file:
        file.truncate(2**26 + 1)
    refused(run("run", tiny, "--work-dir", work), r"cannot read .*stage\.json: it has more than 67,108,864 bytes")
    record.write_text('{"finished": 1' + "0" * 5000 + "}")
    refused(run("run", tiny, "--work-dir", work), r"cannot read .*stage\.json")
    (work / "fine.json").write_text("[" * 40 + "]" * 40)
    assert read_json(work / "fine.json")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stage")
    artefact.begin(folder, {})
    artefact.finish(folder, STATE, {"stage": "student"}, last={key: value + 1 for key, value in STATE.items()})
    return folder


def last_state(stage: Path) -> dict[str, torch.Tensor]:
    found = artefact.find(stage)
    assert found is not None
    return found.last_state()


@settings(max_examples=40)
@given(name=st.sampled_from(artefact.STATES), share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_or_missing_byte_of_a_stages_weights_is_named(
    stage: Path, name: str, share: float, bit: int
) -> None:
    whole = (stage / name).read_bytes()
    at = int(share * len(whole))
    try:
        for damaged in (whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :], whole[:at] + whole[at + 1 :]):
            (stage / name).write_bytes(damaged)
            with pytest.raises(InputError, match=rf"weights .*{name} are damaged: their SHA-256"):
                last_state(stage)
    finally:
        (stage / name).write_bytes(whole)
    assert torch.equal(last_state(stage)["a"], STATE["a"] + 1)
