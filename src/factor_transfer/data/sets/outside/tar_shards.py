"""Tar files in the format of WebDataset: an index of their samples, and the images that are read through it."""

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from factor_transfer.data.decode import decode
from factor_transfer.data.sets.image_files import Skipped
from factor_transfer.data.stored import StoredImages, default_workers
from factor_transfer.errors import InputError, first_line, printable
from factor_transfer.files import open_regular

IMAGES = ("jpg", "jpeg", "png", "webp")  # the endings of images that are found by themselves

# The first bytes of compressed files, and the programs that decompress them.
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ\x00": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
}
_BLOCK = 512  # the size of a tar's blocks in bytes
_MAX_LABEL_BYTES = 2**20
_MAX_CLASSES = 1_000_000
_SHOWN = 60  # the number of characters of a wrong label that are shown


@dataclass(frozen=True)
class TarIndex:
    """The places of the images of a split in its shards, and their labels.

    Attributes:
        shards: the tar files.
        entries: one record per image: the name of the member, the index of the shard, and the offset and size of the
            image in bytes.
        labels: the labels, int64 (N,).
    """

    shards: list[Path]
    entries: np.ndarray
    labels: Tensor


class TarImages(StoredImages):
    """Images in uncompressed tar files, of which any can be read without reading those before it.

    Args:
        root: the folder of the data set.
        index: the places of the images.
        size: see ``StoredImages``; ``None`` requires all images to have the size of the first one of ``like``.
        channels: see ``StoredImages``.
        workers: see ``StoredImages``.
        like: the images whose size these have, if ``size`` is ``None``; ``None`` for these.
    """

    def __init__(
        self,
        root: Path,
        index: TarIndex,
        *,
        size: int | None,
        channels: Literal[1, 3],
        workers: int | None = None,
        like: "TarImages | None" = None,
    ) -> None:
        self.workers = default_workers() if workers is None else workers
        self._root, self._size, self._channels = root, size, channels
        self._shards, self._entries = index.shards, index.entries
        self._opened: bytes | None = None
        if like is not None:
            self._like, self._image = like._like, like._image
        else:
            self._like = self._path(self._entries[0])
            height, width = (size, size) if size is not None else self._load(self._entries[0]).shape[:2]
            self._image = (channels, height, width)

    def encoded_size(self, index: int) -> int:
        """The size of an image in its shard in bytes."""
        return int(self._entries[index]["size"])

    def encoded(self, index: int, start: int = 0, count: int = -1) -> bytes:
        """The bytes of an image in its shard, see ``StoredImages.encoded``."""
        content = self._content(self._entries[index])
        return content[start:] if count < 0 else content[start : start + count]

    def _compute_fingerprint(self) -> bytes:
        """The SHA-256 of the shards' paths, sizes and modification times, and of the members of the images."""
        digest = hashlib.sha256(repr((self._size, self._image)).encode())
        for number in np.unique(self._entries["shard"]):
            shard = self._shards[number]
            try:
                status = shard.stat()
            except OSError as error:
                raise InputError(f"{shard}: cannot be read: {error.strerror}") from error
            name = os.fsencode(os.path.relpath(shard, self._root))
            digest.update(b"%s\0%d\0%d\0%d\0" % (name, number, status.st_size, status.st_mtime_ns))
        for field in ("shard", "offset", "size"):
            digest.update(self._entries[field].tobytes())
        return digest.digest()

    def _path(self, entry: Any) -> Path:
        """The name of an image in messages: the path of its shard, followed by that of its member."""
        return member_path(self._shards[entry["shard"]], os.fsdecode(bytes(entry["name"])))

    def _load(self, entry: Any) -> np.ndarray:
        return decode(self._path(entry), self._size, self._channels, content=self._content(entry))

    def _content(self, entry: Any) -> bytes:
        shard, size = self._shards[entry["shard"]], int(entry["size"])
        with _open(shard) as file:
            file.seek(int(entry["offset"]))
            content = file.read(size)
        if len(content) < size:
            raise InputError(f"{self._path(entry)}: cannot be read: the shard ends before the end of the image")
        return content


def index_shards(shards: Sequence[Path], image: str | None, label: str, skipped: Skipped) -> TarIndex:
    """Read the headers of all members of tar files, and the labels.

    Args:
        shards: the tar files.
        image: the ending of the images, such as ``"seg.png"``; ``None`` for any of ``IMAGES``.
        label: the ending of the labels, ``"cls"``, or ``"json:FIELD"`` for a field of an object.
        skipped: the record that other members are added to.

    Raises:
        InputError: if a file is not a tar, is compressed or truncated, a sample does not have exactly one image and one
            label, or a label is not an integer in 0..K-1.
    """
    kind, _, field = label.partition(":")
    if (kind == "json") != bool(field):
        raise InputError(
            f'data.label is {label!r}; expected an ending, such as "cls", or "json:FIELD" with the name of a field'
        )
    images = IMAGES if image is None else (image,)
    names: list[bytes] = []
    places: list[tuple[int, int, int]] = []
    labels: list[int] = []
    for number, shard in enumerate(shards):
        with _open(shard) as file:
            for key, members in _samples(shard, file):
                found = _one_of(shard, key, members, images, "image")
                label_member = _one_of(shard, key, members, (kind,), "label")
                names.append(os.fsencode(found.name))
                places.append((number, found.offset_data, found.size))
                labels.append(_read_label(shard, file, label_member, field))
                for ending, member in members.items():
                    if member is not found and member is not label_member:
                        skipped.add(f".{ending}", member.name)
    if not places:
        raise InputError(f"{shards[0]}: has no samples" + (", nor have the other shards" if shards[1:] else ""))
    width = max(map(len, names))
    entries = np.empty(
        len(places), [("name", f"S{width}"), ("shard", np.int32), ("offset", np.int64), ("size", np.int64)]
    )
    entries["name"] = names
    entries["shard"], entries["offset"], entries["size"] = np.array(places, np.int64).T
    return TarIndex(list(shards), entries, torch.tensor(labels))


def _samples(shard: Path, file: BufferedReader) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """The samples of a shard: successive members with the same path up to the first dot of the name, by ending."""
    for key, members in groupby(_members(shard, file), lambda member: _divided(member.name)[0]):
        sample: dict[str, tarfile.TarInfo] = {}
        for member in members:
            ending = _divided(member.name)[1]
            if ending in sample:
                raise InputError(f"{member_path(shard, member.name)}: the sample has two files with this ending")
            sample[ending] = member
        yield key, sample


def _members(shard: Path, file: BufferedReader) -> Iterator[tarfile.TarInfo]:
    """The regular files in a shard that belong to samples."""
    _check_uncompressed(shard, file)
    name = ""
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                name = member.name
                base = name.rpartition("/")[2]
                if member.size < 0:  # the library would go back, and never end
                    raise tarfile.ReadError("a size is negative")
                if not member.isreg() or base.startswith((".", "__")) or "." not in base:
                    continue
                if member.issparse():
                    raise InputError(f"{member_path(shard, name)}: is sparse, which is not supported")
                yield member
            file.seek(archive.offset)
            # The library takes a header that is damaged or cut off for the end, but a tar ends with blocks of zeros.
            if file.read(_BLOCK) != bytes(_BLOCK):
                raise tarfile.ReadError("the mark of the end is missing")
    except InputError:
        raise
    except (tarfile.TarError, EOFError, ValueError, OSError) as error:
        last = f" after the member {printable(name)}" if name else ""
        raise InputError(
            f"{shard}: cannot be read as a tar{last}: {first_line(error)}; it is truncated, damaged or no tar"
        ) from error


def _check_uncompressed(shard: Path, file: BufferedReader) -> None:
    begin = file.read(8)
    file.seek(0)
    for mark, (name, program) in _COMPRESSED.items():
        if begin.startswith(mark):
            raise InputError(
                f"{shard}: is compressed by {name}, so its images cannot be read in any order; decompress it with "
                f"{program}"
            )


def _divided(name: str) -> tuple[str, str]:
    """The key of a member's sample, and its ending in lower case: ``a/b.seg.png`` belongs to ``a/b``."""
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return folder + slash + stem, ending.lower()


def _one_of(
    shard: Path, key: str, members: dict[str, tarfile.TarInfo], endings: Sequence[str], what: str
) -> tarfile.TarInfo:
    """The member of a sample that has one of some endings."""
    found = [members[ending] for ending in endings if ending in members]
    if len(found) == 1:
        return found[0]
    wanted = " or ".join(f".{printable(ending)}" for ending in endings)
    existing = ", ".join(f".{printable(ending)}" for ending in members)
    problem = f"has several images ({wanted})" if found else f"has no {what} ({wanted})"
    raise InputError(
        f"{member_path(shard, key)}: the sample {problem}; its files are {existing}. data.{what}=… sets the ending of "
        f"its {what}"
    )


def _read_label(shard: Path, file: BufferedReader, member: tarfile.TarInfo, field: str) -> int:
    if member.size > _MAX_LABEL_BYTES:
        raise InputError(f"{member_path(shard, member.name)}: has {member.size:,} bytes, too many for a label")
    file.seek(member.offset_data)
    text = file.read(member.size).decode(errors="replace").strip()
    number = -1
    try:
        if not field:
            number = int(text)
        else:
            document = json.loads(text)
            text = repr(document[field]) if isinstance(document, dict) and field in document else f"no field {field!r}"
            number = int(text)  # a text in quotes, a fraction or a truth value is no integer
    except (ValueError, RecursionError):
        pass
    if not 0 <= number < _MAX_CLASSES:
        shown = printable(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")
        name = member_path(shard, member.name)
        raise InputError(f"{name}: the label is {shown or 'empty'}, expected an integer in 0..K-1")
    return number


def _open(shard: Path) -> BufferedReader:
    try:
        return open_regular(shard)
    except OSError as error:
        raise InputError(f"{shard}: cannot be read: {error.strerror}") from error


def member_path(shard: Path, name: str) -> Path:
    """The name of a member of a shard in messages."""
    return Path(printable(f"{shard}/{name}"))
