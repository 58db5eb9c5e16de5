"""CIFAR-10 in both of its layouts, with made-up images."""

import struct
from pathlib import Path

import numpy as np

BATCHES = [f"data_batch_{number}" for number in range(1, 6)]


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), np.uint8)


def python2_pickle(data: np.ndarray, key: str, labels: list[int]) -> bytes:
    """What Python 2 wrote for ``{"data": data, key: labels}``, protocol 2, opcode by opcode."""

    def string(text: str) -> bytes:
        return b"U" + bytes([len(text)]) + text.encode()

    raw = data.tobytes()
    minus_one = b"J\xff\xff\xff\xff"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85" + string("b") + b"\x87Rq\x04"
        # The state: (version, shape, dtype, column-major, bytes). The dtype has a state of its own.
        b"(K\x01" + b"K" + bytes([len(data)]) + b"M\x00\x0c\x86"
        b"cnumpy\ndtype\nq\x05" + string("u1") + b"K\x00K\x01\x87Rq\x06"
        b"(K\x03" + string("|") + b"NNN" + minus_one + minus_one + b"K\x00tb"
        b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    )
    numbers = b"]q\x07(" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}q\x01(" + string("data") + array + string(key) + numbers + b"u."


def write_cifar10(root: Path, *, python: bool, count: int = 2) -> Path:
    folder = root / ("cifar-10-batches-py" if python else "cifar-10-batches-bin")
    folder.mkdir()
    for number, batch in enumerate([*BATCHES, "test_batch"]):
        data, labels = pixels(count, number), [(number + i) % 10 for i in range(count)]
        if python:
            (folder / batch).write_bytes(python2_pickle(data, "labels", labels))
        else:
            records = np.concatenate([np.array(labels, np.uint8)[:, None], data], axis=1)
            (folder / f"{batch}.bin").write_bytes(records.tobytes())
    return folder
