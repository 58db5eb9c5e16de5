"""Fetching a published archive, and unpacking it without trusting it."""

import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from factor_transfer.errors import InputError

_ATTEMPTS = 5  # a call gives up earlier, at the first attempt that brings nothing
_TIMEOUT_SECONDS = 30  # without a byte
_CHUNK_BYTES = 1 << 18
_MAX_UNPACKED_BYTES = 1 << 28  # CIFAR's archives unpack to 185 million
_MAX_MEMBERS = 1000


def fetch(url: str, md5: str, folder: Path) -> Path:
    """Download a file, going on where an earlier attempt broke off.

    What has come so far is kept beside the file, under its name and ``.part``. Progress is shown on
    stderr if that is a terminal. For one process at a time.

    Args:
        url: the last part of its path becomes the file's name.
        md5: the sum that the file must have, in hexadecimal digits.
        folder: where to put the file; made if it is not there.

    Returns:
        The file's path. A file that is already there and has that sum is not fetched again; one that has
        another is replaced.

    Raises:
        InputError: if the file cannot be fetched (calling again continues), or has another sum (it is
            deleted).
    """
    file = folder / PurePosixPath(unquote(urlsplit(url).path)).name
    part = file.with_name(f"{file.name}.part")
    try:
        if file.is_file() and _md5(file) == md5:
            return file
        folder.mkdir(parents=True, exist_ok=True)
        _complete(url, part)
        found = _md5(part)
        if found != md5:
            part.unlink()
            raise InputError(f"{url}: fetched and deleted, its MD5 is {found}, expected {md5}")
        return part.replace(file)
    # A URL that is none raises ValueError; InputError is one, and says enough.
    except InputError:
        raise
    except (OSError, HTTPException, ValueError) as error:
        kept = f"; {part} keeps what has come, calling again continues" if part.exists() else ""
        raise InputError(f"{url}: cannot be fetched: {error}{kept}") from error


def _complete(url: str, part: Path) -> None:
    """Fetch into ``part`` what it lacks, trying again as long as it grows."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(part.stem, total=None)
        for attempt in range(1, _ATTEMPTS + 1):
            before = _size(part)
            try:
                _transfer(url, part, lambda done, total: progress.update(task, completed=done, total=total))
                return
            except (OSError, HTTPException):
                if attempt == _ATTEMPTS or _size(part) <= before:
                    raise


def _transfer(url: str, part: Path, show: Callable[[int, int | None], None]) -> None:
    """Make one request for what ``part`` lacks.

    ``show`` is called at each piece that comes, with the bytes there are and those there should be.

    Raises:
        OSError, HTTPException: if the connection fails, or ends before the length that was announced.
    """
    start = _size(part)
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response: HTTPResponse = urlopen(request, timeout=_TIMEOUT_SECONDS)
    except HTTPError as error:
        error.close()
        if error.code != 416 or not start:  # 416: the file has nothing from that byte on
            raise
        if error.headers.get("Content-Range") != f"bytes */{start}":
            part.unlink()  # not because it is complete: it was left by another file
            _transfer(url, part, show)
        return
    with response:
        continued = response.status == 206
        if continued and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise OSError(f"asked for the bytes from {start} on, the server sent others")
        done = start if continued else 0  # a server that does not know ranges sends everything
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        with part.open("ab" if continued else "wb") as out:
            # read1 hands over what has come: at a break, nothing of it is lost.
            while chunk := response.read1(_CHUNK_BYTES):
                out.write(chunk)
                done += len(chunk)
                show(done, total)
    if total is not None and done < total:
        raise OSError(f"the connection ended after {done:,} of {total:,} bytes")


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _md5(file: Path) -> str:
    with file.open("rb") as stream:
        # It notices damage, not malice: the sums are the ones that the data's authors publish.
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a ``.tar.gz`` of plain files and folders.

    It is unpacked in a temporary folder, and what it holds is moved into place when all of it is there: a
    break leaves nothing half unpacked.

    Args:
        archive: the file.
        folder: where the archive's top files and folders go; made if it is not there.

    Raises:
        InputError: if the archive is damaged, holds a link, a device or a path that leads out of the
            folder, unpacks to more than 256 MiB or a thousand files, or if a folder of the same name is in its place.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=f".{archive.name}-") as temporary:
            with gzip.open(archive) as unpacked:
                stream = _Bounded(unpacked, archive)
                with tarfile.open(fileobj=stream, mode="r|") as tar:  # from front to end: nothing is read twice
                    tar.extractall(temporary, filter=_guard(archive))
                # gzip's checksum is compared at the end of the stream, behind where tar stops reading.
                while stream.read(_CHUNK_BYTES):
                    pass
            for item in sorted(Path(temporary).iterdir()):
                item.replace(folder / item.name)
    # What a damaged archive raises is not one type: zlib.error, EOFError, TarError, OSError, ValueError.
    except InputError:
        raise
    except tarfile.FilterError as error:
        raise InputError(f"{archive}: refused, member {error.tarinfo.name!r}: {error}") from error
    except Exception as error:
        raise InputError(f"{archive}: cannot be unpacked: {type(error).__name__}: {error}") from error


class _Bounded(io.RawIOBase):
    """A stream that ends with an error at the limit: of what members do not declare, too, such as headers."""

    def __init__(self, stream: gzip.GzipFile, archive: Path) -> None:
        self._stream, self._archive, self._done = stream, archive, 0

    def read(self, size: int = -1, /) -> bytes:
        content = self._stream.read(size if 0 <= size < _CHUNK_BYTES else _CHUNK_BYTES)
        self._done += len(content)
        _limit(self._archive, self._done)
        return content


def _limit(archive: Path, unpacked: int) -> None:
    if unpacked > _MAX_UNPACKED_BYTES:
        raise InputError(f"{archive}: refused, it unpacks to more than {_MAX_UNPACKED_BYTES:,} bytes")


def _guard(archive: Path) -> Callable[[tarfile.TarInfo, str], tarfile.TarInfo | None]:
    """The filter that tarfile has for data, and two rules more: no links, and limits to the whole."""
    unpacked = members = 0

    def admit(member: tarfile.TarInfo, destination: str) -> tarfile.TarInfo | None:
        nonlocal unpacked, members
        # The filter admits links that stay within the folder; data has none, and they are how filters fail.
        if not (member.isreg() or member.isdir()):
            raise InputError(f"{archive}: refused, member {member.name!r} is neither a file nor a folder")
        unpacked, members = unpacked + member.size, members + 1
        _limit(archive, unpacked)
        if members > _MAX_MEMBERS:
            raise InputError(f"{archive}: refused, it has more than {_MAX_MEMBERS:,} files and folders")
        return tarfile.data_filter(member, destination)

    return admit
