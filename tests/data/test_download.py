"""Downloads from a server of our own, and archives that mean harm."""

import gzip
import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from conftest import Run, refused
from factor_transfer.data.sets import download
from factor_transfer.data.sets.cifar import load as cifar
from factor_transfer.data.sets.download import fetch, unpack
from factor_transfer.errors import InputError

CONTENT = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves ``content`` at any path; what goes wrong is set by the test."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.knows_ranges = True
        self.breaks: list[int] = []  # after so many bytes, each break once
        self.status: int | None = None
        self.shift = 0  # what it sends begins so many bytes later than it was asked
        self.requests: list[str | None] = []  # their Range headers

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/files/a%20file.bin?x=1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.requests.append(asked)
        content, total = self.server.content, len(self.server.content)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.server.knows_ranges else 0
        start += self.server.shift
        if self.server.status:
            self.send_error(self.server.status)
            return
        if start >= total:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("Content-Length", str(total - start))
        self.end_headers()
        end = start + self.server.breaks.pop(0) if self.server.breaks else total
        self.wfile.write(content[start:end])

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a test's output is its own."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_fetch_names_the_file_and_fetches_once(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    for _ in range(2):
        file = fetch(server.url, MD5, folder)
        assert file == folder / "a file.bin"
        assert file.read_bytes() == CONTENT
    assert server.requests == [None]
    assert list(folder.iterdir()) == [file]


def test_a_file_with_another_sum_is_replaced(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a file.bin").write_bytes(b"old")
    assert fetch(server.url, MD5, tmp_path).read_bytes() == CONTENT


def test_an_interrupted_download_continues_within_a_call(server: Server, tmp_path: Path) -> None:
    server.breaks = [100_000, 50_000]
    assert fetch(server.url, MD5, tmp_path).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=100000-", "bytes=150000-"]


def test_an_interrupted_download_continues_in_the_next_call(server: Server, tmp_path: Path) -> None:
    server.breaks = [100_000, 0]
    with pytest.raises(
        InputError, match=r"ended after 100,000 of 300,000 bytes; .*\.part .* the next attempt resumes it"
    ):
        fetch(server.url, MD5, tmp_path)
    assert (tmp_path / "a file.bin.part").read_bytes() == CONTENT[:100_000]
    assert fetch(server.url, MD5, tmp_path).read_bytes() == CONTENT
    assert server.requests[-1] == "bytes=100000-"


def test_attempts_are_limited(server: Server, tmp_path: Path) -> None:
    server.breaks = [10] * 100
    with pytest.raises(InputError, match="ended after 50 of"):
        fetch(server.url, MD5, tmp_path)
    assert len(server.requests) == 5


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.knows_ranges = False
    server.breaks = [100_000]
    assert fetch(server.url, MD5, tmp_path).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=100000-"]


def test_other_bytes_than_asked_for_are_refused(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a file.bin.part").write_bytes(CONTENT[:100])
    server.shift = 7
    with pytest.raises(InputError, match="from 100 on were requested, but the server sent others"):
        fetch(server.url, MD5, tmp_path)


@pytest.mark.parametrize("part", [CONTENT, CONTENT + b"more", b"x" * 400_000])
def test_a_part_as_long_as_the_file_or_longer(server: Server, tmp_path: Path, part: bytes) -> None:
    (tmp_path / "a file.bin.part").write_bytes(part)
    assert fetch(server.url, MD5, tmp_path).read_bytes() == CONTENT


def test_a_wrong_sum_deletes_the_file(server: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{MD5}, expected 0000") as error:
        fetch(server.url, "0" * 32, tmp_path)
    assert server.url in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("status", [404, 416, 503])
def test_a_refusal_names_the_url(server: Server, tmp_path: Path, status: int) -> None:
    server.status = status
    with pytest.raises(InputError, match=f"/files/.*cannot be downloaded: HTTP Error {status}"):
        fetch(server.url, MD5, tmp_path)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/file", "no-url", "nothing://here/file"])
def test_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(InputError, match="cannot be downloaded"):
        fetch(url, MD5, tmp_path)


def archive(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def member(name: str, type: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = type, link
    return info


def test_unpack(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "a.tar.gz",
        [(member("top", tarfile.DIRTYPE), b""), (member("top/x"), b"1"), (member("y"), b"2")],
    )
    unpack(path, tmp_path / "out")
    assert (tmp_path / "out/top/x").read_bytes() == b"1"
    assert sorted(item.name for item in (tmp_path / "out").iterdir()) == ["top", "y"]
    with pytest.raises(InputError, match=r"a\.tar\.gz: cannot be unpacked: OSError"):
        unpack(path, tmp_path / "out")  # a folder that holds something is not overwritten


@pytest.mark.parametrize(
    "bad",
    [
        member("../outside"),
        member("top/../../outside"),
        member("outside", tarfile.SYMTYPE, "/etc/passwd"),
        member("outside", tarfile.SYMTYPE, "x"),
        member("outside", tarfile.LNKTYPE, "top/x"),
        member("outside", tarfile.CHRTYPE),
        member("outside", tarfile.BLKTYPE),
        member("outside", tarfile.FIFOTYPE),
    ],
)
def test_unpack_refuses_paths_outside_the_folder(tmp_path: Path, bad: tarfile.TarInfo) -> None:
    path = archive(tmp_path / "a.tar.gz", [(member("top/x"), b"1"), (bad, b"")])
    with pytest.raises(InputError, match=r"a\.tar\.gz: refused, member '.*outside'"):
        unpack(path, tmp_path / "deep" / "out")
    assert not list((tmp_path / "deep" / "out").iterdir())
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.tar.gz", "deep"]


def test_unpack_keeps_an_absolute_path_inside(tmp_path: Path) -> None:
    unpack(archive(tmp_path / "a.tar.gz", [(member("/top/x"), b"1")]), tmp_path / "out")
    assert (tmp_path / "out/top/x").read_bytes() == b"1"


def test_unpack_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_MAX_UNPACKED_BYTES", 1_000)
    path = archive(tmp_path / "a.tar.gz", [(member("x"), bytes(600)), (member("y"), bytes(600))])
    with pytest.raises(InputError, match="refused, it unpacks to more than 1,000 bytes"):
        unpack(path, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_unpack_limits_declared_and_actual_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, whole = tmp_path / "a.tar.gz", io.BytesIO()
    huge = member("x")
    huge.size = 2**40
    path.write_bytes(gzip.compress(huge.tobuf() + bytes(1024)))
    with pytest.raises(InputError, match="refused, it unpacks to more than 268,435,456 bytes"):
        unpack(path, tmp_path / "out")
    monkeypatch.setattr(download, "_MAX_UNPACKED_BYTES", 200_000)
    with tarfile.open(fileobj=whole, mode="w") as tar:
        tar.addfile(member("y"), io.BytesIO())
    noted = member("z")
    noted.pax_headers = {"comment": "x" * 300_000}
    # Behind the end, and in a header: neither is in a member's size.
    for content in (whole.getvalue() + bytes(300_000), noted.tobuf(tarfile.PAX_FORMAT) + bytes(1024)):
        path.write_bytes(gzip.compress(content))
        with pytest.raises(InputError, match="refused, it unpacks to more than 200,000 bytes"):
            unpack(path, tmp_path / "out")
    monkeypatch.setattr(download, "_MAX_MEMBERS", 3)
    with pytest.raises(InputError, match="refused, it has more than 3 files and folders"):
        unpack(archive(path, [(member(f"{index}"), b"") for index in range(4)]), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "bad", [member("../outside"), member("outside", tarfile.SYMTYPE, "/etc"), member("outside", tarfile.CHRTYPE)]
)
def test_a_malicious_archive_is_refused_by_a_command(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: tarfile.TarInfo, tiny: Path, run: Run
) -> None:
    server.content = archive(tmp_path / "made.tar.gz", [(bad, b"")]).read_bytes()
    monkeypatch.setitem(cifar.ARCHIVES, "cifar10", (server.url, hashlib.md5(server.content).hexdigest()))
    refused(run("teacher", tiny, "data={name='cifar10', download=true, root='data'}"), "refused, member '.*outside'")
    assert [item.name for item in (tmp_path / "data").iterdir()] == ["a file.bin"]


def test_unpack_refuses_damaged_archives(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar.gz", [(member("x"), CONTENT[:5_000]), (member("y"), CONTENT[:5_000])])
    whole = path.read_bytes()
    assert gzip.decompress(whole)
    for damaged in (
        b"",
        b"no archive",
        whole[: len(whole) // 2],
        whole[:-1],
        whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:],  # the checksum at the end
        whole[:3_000] + bytes([whole[3_000] ^ 1]) + whole[3_001:],
    ):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"a\.tar\.gz: cannot be unpacked"):
            unpack(path, tmp_path / "out")
        assert not list((tmp_path / "out").iterdir())
    with pytest.raises(InputError, match=r"absent: cannot be unpacked: FileNotFoundError"):
        unpack(tmp_path / "absent", tmp_path / "out")


def test_cifar_is_downloaded_when_asked_for(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = b"\x07" + bytes(range(256)) * 12
    names = [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]
    members = [(member(f"cifar-10-batches-bin/{name}"), record) for name in names]
    server.content = archive(tmp_path / "made.tar.gz", members).read_bytes()
    monkeypatch.setitem(cifar.ARCHIVES, "cifar10", (server.url, hashlib.md5(server.content).hexdigest()))
    for _ in range(2):
        source = cifar.load_cifar10(root=str(tmp_path / "data"), download=True)
        assert source.train.labels.tolist() == [7] * 5
    assert len(server.requests) == 1
