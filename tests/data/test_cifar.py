"""CIFAR's two layouts, read from small files that are written here, and the pickles' guard."""

import hashlib
import os
import pickle
import pickletools
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cifar_files import BATCHES, pixels, python2_pickle, write_cifar10
from conftest import CIFAR10, Run, needs_cifar10, refused
from factor_transfer.data.sets.cifar import checksums as published
from factor_transfer.data.sets.cifar.load import CIFAR10_CLASSES, load_cifar10, load_cifar100
from factor_transfer.data.sets.cifar.pickles import load_pickled_dict
from factor_transfer.errors import InputError


@pytest.mark.parametrize("python", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_cifar10_is_read_from_both_layouts(tmp_path: Path, python: bool, inside: bool) -> None:
    folder = write_cifar10(tmp_path, python=python)
    source = load_cifar10(root=str(folder if inside else tmp_path))
    assert source.classes == CIFAR10_CLASSES
    assert source.train.images.shape == (10, 3, 32, 32)
    assert source.train.images.dtype == torch.uint8
    assert source.train.labels.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    # The sixth image is the second of the third batch; the planes are red, green, blue, each row by row.
    expected = pixels(2, 2)[1]
    assert source.train.images[:][5, 1, 3, 7] == expected[1024 + 3 * 32 + 7]
    test = source.test()
    assert test.labels.tolist() == [5, 6]
    assert torch.equal(test.images[:], torch.from_numpy(pixels(2, 5)).view(2, 3, 32, 32))


def test_binary_is_preferred_and_the_test_file_read_late(tmp_path: Path) -> None:
    write_cifar10(tmp_path, python=True, count=3)
    folder = write_cifar10(tmp_path, python=False)
    (folder / "test_batch.bin").write_bytes(b"damaged")
    source = load_cifar10(root=str(tmp_path))
    assert len(source.train) == 10
    with pytest.raises(InputError, match=r"test_batch\.bin: has 7 bytes, expected records of 3,073"):
        source.test()


def test_class_names_come_from_the_meta_file(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path, python=False)
    (folder / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n\n")
    assert load_cifar10(root=str(tmp_path)).classes == tuple("abcdefghij")
    (folder / "batches.meta.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match=r"batches\.meta\.txt: has the names of 2 classes, expected 10"):
        load_cifar10(root=str(tmp_path))


def test_python_class_names(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path, python=True)
    names = [name.encode() for name in "abcdefghij"]
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": names}))
    assert load_cifar10(root=str(tmp_path)).classes == tuple("abcdefghij")
    for wrong in ({"labels": 3}, {"label_names": [*"abcdefghi", ("j",)]}):
        (folder / "batches.meta").write_bytes(pickle.dumps(wrong))
        with pytest.raises(InputError, match=r"batches\.meta: 'label_names' is not a list of names"):
            load_cifar10(root=str(tmp_path))
    (folder / "batches.meta").unlink()
    os.mkfifo(folder / "batches.meta")
    with pytest.raises(InputError, match=r"batches\.meta is a FIFO"):
        load_cifar10(root=str(tmp_path))


@pytest.mark.parametrize("python", [False, True])
def test_cifar100_has_fine_and_coarse_labels(tmp_path: Path, python: bool) -> None:
    folder = tmp_path / ("cifar-100-python" if python else "cifar-100-binary")
    folder.mkdir()
    data, coarse, fine = pixels(3), [0, 19, 4], [99, 0, 57]
    for name in ("train", "test"):
        if python:
            content = {"data": data, "coarse_labels": coarse, "fine_labels": fine}
            (folder / name).write_bytes(pickle.dumps(content, 4))
        else:
            labels = np.array([coarse, fine], np.uint8).T
            (folder / f"{name}.bin").write_bytes(np.concatenate([labels, data], axis=1).tobytes())
    source = load_cifar100(root=str(tmp_path))
    assert source.train.labels.tolist() == fine
    assert source.classes == tuple(str(number) for number in range(100))
    assert torch.equal(source.test().images[:], torch.from_numpy(data).view(3, 3, 32, 32))
    assert python or source.origin.test_size == 3
    groups = [f"group {number}" for number in range(20)]
    if python:
        (folder / "meta").write_bytes(pickle.dumps({"coarse_label_names": groups}, 2))
    else:
        (folder / "coarse_label_names.txt").write_text("\n".join(groups))
    source = load_cifar100(root=str(tmp_path), coarse=True)
    assert source.train.labels.tolist() == coarse
    assert source.classes == tuple(groups)


def test_a_missing_data_set_is_reported_with_folder_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cifar-10-batches-bin, .*cifar-10-batches-py or .*download=true"):
        load_cifar10(root=str(tmp_path))
    with pytest.raises(InputError, match=r"cifar-100-binary, .*cifar-100-python or .*data\.root"):
        load_cifar100(root=str(tmp_path / "absent"))


@pytest.mark.parametrize("name", ["data_batch_4.bin", "test_batch.bin"])
def test_every_batch_must_be_there(tmp_path: Path, name: str) -> None:
    (write_cifar10(tmp_path, python=False) / name).unlink()
    with pytest.raises(InputError, match=f"incomplete, {name} missing"):
        load_cifar10(root=str(tmp_path))


def test_damaged_binary_files(tmp_path: Path) -> None:
    file = write_cifar10(tmp_path, python=False) / "data_batch_2.bin"
    whole = file.read_bytes()
    for damaged in (b"", whole[:-1], whole + b"\0"):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=r"data_batch_2\.bin: .* bytes, expected records"):
            load_cifar10(root=str(tmp_path))
    file.write_bytes(whole[:3073] + b"\x0a" + whole[3074:])
    with pytest.raises(InputError, match=r"data_batch_2\.bin: image 1 has label 10, expected 0\.\.9"):
        load_cifar10(root=str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": pixels(2), "labels": [1]}, "1 labels in 'labels' for 2 images"),
        ({"data": pixels(2), "labels": [1, 10]}, "image 1 has label 10"),
        ({"data": pixels(2), "labels": [1, -1]}, "not a list of numbers"),
        ({"data": pixels(2), "labels": [1, "2"]}, "not a list of numbers"),
        ({"data": pixels(2), "labels": b"12"}, "not a list of numbers"),
        ({"data": pixels(2)[:, :-1], "labels": [1, 2]}, "expected uint8 of shape"),
        ({"data": pixels(0), "labels": []}, "expected uint8 of shape"),
        ({"data": np.array(3, np.uint8), "labels": []}, "expected uint8 of shape"),
        ({"data": b"x", "labels": []}, "'data' is bytes"),
        ({"data": pixels(1).astype(np.float32), "labels": [0]}, "array of 'f4', expected 'u1'"),
        ([1, 2], "expected a dict, found a list"),
        ({"data": [pickle.PickleBuffer]}, r"refers to .*PickleBuffer"),
        ({"data": {1}}, "opcode EMPTY_SET, which no CIFAR file contains"),
        ({"data": pixels(1), 1: 2}, "a dict with a int as a key"),
        ({"data": pixels(1), "labels": [1.0]}, "not a list of numbers"),
    ],
)
def test_damaged_python_files(tmp_path: Path, content: object, message: str) -> None:
    file = write_cifar10(tmp_path, python=True) / "data_batch_3"
    file.write_bytes(pickle.dumps(content, 4))
    with pytest.raises(InputError, match=f"data_batch_3.*{message}"):
        load_cifar10(root=str(tmp_path))


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("module", [b"numpy._core.multiarray", b"numpy.core.multiarray"])
def test_pickles_of_python_3(tmp_path: Path, protocol: int, order: str, module: bytes) -> None:
    file = tmp_path / "batch"
    data = np.asarray(pixels(2), order="F" if order == "F" else "C")
    pickled = pickle.dumps({"data": data, "labels": [1, 2]}, protocol)
    if protocol < 4:  # where names are lines, not counted text
        pickled = pickled.replace(b"numpy._core.multiarray", module)
    file.write_bytes(pickled)
    content = load_pickled_dict(file)
    assert np.array_equal(np.asarray(content["data"]), data)
    assert content["labels"] == [1, 2]


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("protocol", range(6))
def test_a_malicious_pickle_is_refused_and_does_nothing(tmp_path: Path, protocol: int) -> None:
    file, target = tmp_path / "batch", tmp_path / "made"
    file.write_bytes(pickle.dumps({"data": Malicious(target)}, protocol))
    with pytest.raises(InputError, match=r"batch: refused, the pickle refers to (posix|nt)\.mkdir"):
        load_pickled_dict(file)
    assert not target.exists()


@pytest.mark.parametrize("name", ["numpy\nload", "numpy.core.multiarray\nfromfile", "builtins\neval", "os\nsystem"])
def test_other_names_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "batch").write_bytes(f"c{name}\n.".encode())
    with pytest.raises(InputError, match=name.replace("\n", r"\.")):
        load_pickled_dict(tmp_path / "batch")


def test_unreadable_pickles(tmp_path: Path) -> None:
    whole = pickle.dumps({"a": 1})
    for damaged in (b"", whole[:-1], whole + b".", b"\xff" * 20):
        (tmp_path / "batch").write_bytes(damaged)
        with pytest.raises(InputError, match="batch: cannot be read as a pickled CIFAR file"):
            load_pickled_dict(tmp_path / "batch")
    with pytest.raises(InputError, match=r"absent: cannot be read .* FileNotFoundError"):
        load_pickled_dict(tmp_path / "absent")


def text(content: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(content)) + content


# The opcodes with a length of eight bytes, and of four.
BYTES8, BYTES4 = (b"\x8d", b"\x8e"), (b"T", b"X", b"B")
ENCODE = b"c_codecs\nencode\n"
LATIN1 = text(b"latin1")
# Tuples, each of the one before it twice: 60 levels, 2 to the 60 leaves.
NESTED = b")" + b"".join(b"q\x00h\x00\x86" for _ in range(60))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x96" + struct.pack("<Q", 2**32) + b"xx.", "opcode BYTEARRAY8, which no CIFAR file contains"),
        (b"\x80\x05\x97.", "opcode NEXT_BUFFER"),
        (b"\x80\x05N\x98.", "opcode READONLY_BUFFER"),
        *(
            (code + struct.pack("<Q", 2**40) + b"xx.", r"expected 1,099,511,627,776 more bytes, but 3 are")
            for code in BYTES8
        ),
        *(
            (code + struct.pack("<I", 2**31 - 1) + b"xx.", r"expected 2,147,483,647 more bytes, but 3 are")
            for code in BYTES4
        ),
        (b"\x95" + struct.pack("<Q", 2**33) + b".", r"expected 8,589,934,592 more bytes, but 1 are left"),
        (ENCODE + text(b"-" * 360_000) + text(b"punycode") + b"\x86R.", "an encoding other than latin1"),
        (ENCODE + text(b"x") + b"\x85R.", "TypeError"),
        (ENCODE + b"(" + text(b"x") + LATIN1 + text(b"ignore") + b"tR.", "TypeError"),
        # One text, encoded again and again from the memo.
        (
            text(b"x" * 10_000) + LATIN1 + b"\x86q\x00" + (ENCODE + b"h\x00R") * 100 + b".",
            "more text than the file contains",
        ),
        (b"}" + NESTED + b"Ns.", "a dict with a tuple as a key"),
        (b"}(" + NESTED + b"Nu.", "a dict with a tuple as a key"),
        (b"(" + NESTED + b"Nd.", "a dict with a tuple as a key"),
        (b"}(" + text(b"k" * 1001) + b"Nu.", "expected a short string"),
        (b"](NNu.", "sets items of a list"),
        (ENCODE + b"}" + text(b"a") + b"Nsb.", "sets the state of an object that has none"),
        (b"cnumpy\nndarray\n)R(NN" + b"cnumpy\ndtype\n" + NESTED + b"\x85RNNtb.", "an array of tuple, expected 'u1'"),
        (b"c" + b"x" * 5000 + b"\n\x1b[2J\n.", r"refers to 'x{70,80}, which"),
    ],
)
def test_expensive_pickles_are_refused_at_once(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "batch").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(InputError, match=message):
        load_pickled_dict(tmp_path / "batch")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**23


def test_a_pickle_that_would_fill_the_memory_is_refused(tiny: Path, tmp_path: Path, run: Run) -> None:
    folder = write_cifar10(tmp_path, python=True)
    (folder / "data_batch_2").write_bytes(b"\x96" + struct.pack("<Q", 2**32) + b"xx.")
    refused(run("teacher", tiny, f"data={{name='cifar10', root='{tmp_path}'}}"), "data_batch_2: .*BYTEARRAY8")


OPCODES = [ord(opcode.code) for opcode in pickletools.opcodes]


@settings(max_examples=300)
@given(st.lists(st.sampled_from(OPCODES).map(lambda code: bytes([code])) | st.binary(max_size=9), max_size=40))
def test_any_program_is_read_or_refused(tmp_path: Path, parts: list[bytes]) -> None:
    (tmp_path / "batch").write_bytes(b"".join(parts) + b".")
    with suppress(InputError):
        assert isinstance(load_pickled_dict(tmp_path / "batch"), dict)


SMALL = python2_pickle(pixels(1), "labels", [3])
STRUCTURE = [at for at in range(len(SMALL)) if not 200 <= at < 200 + 3000]  # the pixels hold no opcodes


@settings(max_examples=300)
@given(at=st.sampled_from(STRUCTURE), byte=st.none() | st.integers(0, 255))
def test_any_damaged_byte_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, at: int, byte: int | None
) -> None:
    root = tmp_path_factory.getbasetemp() / "damaged"
    folder = root / "cifar-10-batches-py"
    if not folder.exists():
        root.mkdir()
        write_cifar10(root, python=True, count=1)
    damaged = SMALL[:at] if byte is None else SMALL[:at] + bytes([byte]) + SMALL[at + 1 :]
    (folder / "data_batch_1").write_bytes(damaged)
    try:
        source = load_cifar10(root=str(root))
    except InputError:
        return
    assert source.train.images.shape == (5, 3, 32, 32)


@pytest.mark.parametrize("kind", ["sha256", "md5"])
@settings(max_examples=30)
@given(data=st.data())
def test_any_flipped_byte_of_a_published_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, data: st.DataObject
) -> None:
    python = kind == "md5"
    folder = tmp_path / ("cifar-10-batches-py" if python else "cifar-10-batches-bin")
    if not folder.exists():
        write_cifar10(tmp_path, python=python)
    name = data.draw(st.sampled_from([*BATCHES, "test_batch"])) + ("" if python else ".bin")
    whole = (folder / name).read_bytes()
    monkeypatch.setitem(published.SUMS, name, (2, kind, hashlib.new(kind, whole).hexdigest()))
    load_cifar10(root=str(tmp_path)).test()
    at, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    for damaged in (whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :], whole[:at] + whole[at + 1 :]):
        (folder / name).write_bytes(damaged)
        with pytest.raises(InputError, match=rf"{name}\b"):
            load_cifar10(root=str(tmp_path)).test()
    (folder / name).write_bytes(whole)


def test_another_file_of_a_published_name_is_refused_unless_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_cifar10(tmp_path, python=False)
    monkeypatch.setitem(published.SUMS, "data_batch_2.bin", (2, "sha256", "0" * 64))
    with pytest.raises(InputError, match=r"data_batch_2\.bin: damaged, or not the published file.*data\.verify=false"):
        load_cifar10(root=str(tmp_path))
    assert len(load_cifar10(root=str(tmp_path), verify=False).train) == 10
    (folder / "data_batch_2.bin").write_bytes((folder / "data_batch_2.bin").read_bytes()[:3073])
    assert len(load_cifar10(root=str(tmp_path)).train) == 9  # of another size: somebody's own


def test_checksums_are_complete() -> None:
    assert {(kind, len(digits)) for _, kind, digits in published.SUMS.values()} == {("sha256", 64), ("md5", 32)}


@needs_cifar10
def test_the_real_cifar10() -> None:
    source = load_cifar10(root=str(CIFAR10))
    assert source.classes == CIFAR10_CLASSES
    for split, size in ((source.train, 5_000), (source.test(), 1_000)):
        assert split.labels.bincount().tolist() == [size] * 10
    means = [
        channel.sum(dtype=torch.int64).item() / channel.numel() / 255 for channel in source.train.images[:].unbind(1)
    ]
    assert means == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-5)


@needs_cifar10
def test_one_flipped_bit_of_the_real_cifar10(tmp_path: Path) -> None:
    for path in (CIFAR10 / "cifar-10-batches-bin").iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "data_batch_1.bin").unlink()
    content = bytearray((CIFAR10 / "cifar-10-batches-bin" / "data_batch_1.bin").read_bytes())
    content[12_345_678] ^= 1
    (tmp_path / "data_batch_1.bin").write_bytes(content)
    with pytest.raises(InputError, match=r"data_batch_1\.bin: damaged, or not the published file"):
        load_cifar10(root=str(tmp_path))
