"""Downloading a published archive, and unpacking it safely."""

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

_ATTEMPTS = 5  # the largest number of attempts; an attempt that transfers nothing is the last
_TIMEOUT_SECONDS = 30  # the time without any data after which an attempt fails
_CHUNK_BYTES = 1 << 18
_MAX_UNPACKED_BYTES = 1 << 28  # CIFAR's archives unpack to 185 million bytes
_MAX_MEMBERS = 1000


def fetch(url: str, md5: str, folder: Path) -> Path:
    """Download a file, resuming an earlier attempt that was interrupted.

    An incomplete file has the ending ``.part``. Progress is shown on stderr if that is a terminal. Only one process at
    a time may download a file.

    Args:
        url: the URL, the last part of whose path becomes the name of the file.
        md5: the expected MD5 of the file, hexadecimal.
        folder: the folder of the file, which is created if it does not exist.

    Returns:
        The path of the file. An existing file is not downloaded again if it has the expected MD5, and is replaced
        otherwise.

    Raises:
        InputError: if the file cannot be downloaded (the next call resumes it), or has another MD5 (it is deleted).
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
            raise InputError(f"{url}: downloaded and deleted, because its MD5 is {found}, expected {md5}")
        return part.replace(file)
    # An invalid URL raises ValueError, which InputError is a subclass of.
    except InputError:
        raise
    except (OSError, HTTPException, ValueError) as error:
        resume = f"; {part} has the data received so far, and the next attempt resumes it" if part.exists() else ""
        raise InputError(f"{url}: cannot be downloaded: {error}{resume}") from error


def _complete(url: str, part: Path) -> None:
    """Download the missing rest of ``part``, with further attempts as long as it grows."""
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
    """Request the missing rest of ``part`` once.

    ``show`` is called for each chunk, with the number of bytes received and the total, if it is known.

    Raises:
        OSError, HTTPException: if the connection fails, or ends before the announced length.
    """
    start = _size(part)
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response: HTTPResponse = urlopen(request, timeout=_TIMEOUT_SECONDS)
    except HTTPError as error:
        error.close()
        if error.code != 416 or not start:  # 416: the file ends before the requested range
            raise
        if error.headers.get("Content-Range") != f"bytes */{start}":
            part.unlink()  # it is not complete, but a part of another file
            _transfer(url, part, show)
        return
    with response:
        continued = response.status == 206
        if continued and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise OSError(f"the bytes from {start} on were requested, but the server sent others")
        done = start if continued else 0  # a server that does not support ranges sends the whole file
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        with part.open("ab" if continued else "wb") as out:
            # read1 returns the data received so far, so that none is lost if the connection breaks.
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
        # MD5 detects damage, but not manipulation; it is what the authors of the data publish.
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a ``.tar.gz`` archive of plain files and folders.

    It is unpacked into a temporary folder, whose content is moved into place when it is complete, so that an
    interruption leaves nothing incomplete.

    Args:
        archive: the archive.
        folder: the folder to unpack into, which is created if it does not exist.

    Raises:
        InputError: if the archive is damaged, contains a link, a device or a path outside the folder, unpacks to more
            than 256 MiB or a thousand files, or contains a folder that exists already.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=f".{archive.name}-") as temporary:
            with gzip.open(archive) as unpacked:
                stream = _Bounded(unpacked, archive)
                with tarfile.open(fileobj=stream, mode="r|") as tar:  # "r|" reads the stream only once
                    tar.extractall(temporary, filter=_guard(archive))
                # gzip verifies its checksum at the end of the stream, which tar does not reach.
                while stream.read(_CHUNK_BYTES):
                    pass
            for item in sorted(Path(temporary).iterdir()):
                item.replace(folder / item.name)
    # A damaged archive may raise zlib.error, EOFError, TarError, OSError or ValueError.
    except InputError:
        raise
    except tarfile.FilterError as error:
        raise InputError(f"{archive}: refused, member {error.tarinfo.name!r}: {error}") from error
    except Exception as error:
        raise InputError(f"{archive}: cannot be unpacked: {type(error).__name__}: {error}") from error


class _Bounded(io.RawIOBase):
    """A stream that fails beyond the size limit, which includes data outside the declared members, such as headers."""

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
    """The ``data`` filter of ``tarfile`` with two further rules: no links, and limits for the whole archive."""
    unpacked = members = 0

    def admit(member: tarfile.TarInfo, destination: str) -> tarfile.TarInfo | None:
        nonlocal unpacked, members
        # tarfile's filter admits links inside the folder. Data sets have none, and links are how filters are bypassed.
        if not (member.isreg() or member.isdir()):
            raise InputError(f"{archive}: refused, member {member.name!r} is neither a file nor a folder")
        unpacked, members = unpacked + member.size, members + 1
        _limit(archive, unpacked)
        if members > _MAX_MEMBERS:
            raise InputError(f"{archive}: refused, it has more than {_MAX_MEMBERS:,} files and folders")
        return tarfile.data_filter(member, destination)

    return admit
