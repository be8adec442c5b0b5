from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from squint._checks import InputError
from squint.data import download
from squint.data.download import RemoteFile, default_folder, extract, fetch

CONTENT = bytes(range(256)) * 4096


class Home(ThreadingHTTPServer):
    """A server of one file that can forget ranges, break off, or answer with an error."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.ranges = True
        self.break_after: list[int] = []
        self.status = 200
        self.asked: list[str | None] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that hang up in the middle are what is tested."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/set.bin"


class Handler(BaseHTTPRequestHandler):
    server: Home

    def do_GET(self) -> None:
        home = self.server
        asked = self.headers.get("Range")
        home.asked.append(asked)
        if home.status != 200:
            self.send_error(home.status)
            return
        match = re.fullmatch(r"bytes=(\d+)-", asked or "") if home.ranges else None
        start = int(match.group(1)) if match else 0
        self.send_response(206 if match else 200)
        if match:
            self.send_header("Content-Range", f"bytes {start}-{len(home.content) - 1}/{len(home.content)}")
        self.send_header("Content-Length", str(len(home.content) - start))
        self.end_headers()
        body = home.content[start:]
        self.wfile.write(body[: home.break_after.pop(0)] if home.break_after else body)

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.0)
    with Home() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def remote(home: Home, content: bytes = CONTENT) -> RemoteFile:
    return RemoteFile(home.url, hashlib.sha256(content).hexdigest(), len(content))


def test_a_file_arrives_whole_and_is_not_asked_for_twice(home: Home, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    path = fetch(remote(home), folder)
    assert path == folder / "set.bin"
    assert path.read_bytes() == CONTENT
    assert fetch(remote(home), folder) == path
    assert home.asked == [None]
    assert [entry.name for entry in folder.iterdir()] == ["set.bin"]


def test_an_interrupted_download_continues_where_it_stopped(home: Home, tmp_path: Path) -> None:
    home.break_after = [1000, 500]
    assert fetch(remote(home), tmp_path).read_bytes() == CONTENT
    assert home.asked == [None, "bytes=1000-", "bytes=1500-"]


def test_a_part_of_an_earlier_run_is_continued(home: Home, tmp_path: Path) -> None:
    (tmp_path / "set.bin.part").write_bytes(CONTENT[:777])
    assert fetch(remote(home), tmp_path).read_bytes() == CONTENT
    assert home.asked == ["bytes=777-"]


def test_a_complete_part_needs_no_request(home: Home, tmp_path: Path) -> None:
    (tmp_path / "set.bin.part").write_bytes(CONTENT)
    assert fetch(remote(home), tmp_path).read_bytes() == CONTENT
    assert home.asked == []


def test_without_ranges_it_starts_again(home: Home, tmp_path: Path) -> None:
    home.ranges = False
    home.break_after = [1000]
    assert fetch(remote(home), tmp_path).read_bytes() == CONTENT
    assert home.asked == [None, "bytes=1000-"]


def test_what_has_arrived_is_kept_when_it_gives_up(home: Home, tmp_path: Path) -> None:
    home.break_after = [10] * download.ATTEMPTS
    with pytest.raises(InputError, match=rf"could not download .*after {10 * download.ATTEMPTS} of 1048576"):
        fetch(remote(home), tmp_path)
    assert (tmp_path / "set.bin.part").read_bytes() == CONTENT[: 10 * download.ATTEMPTS]
    assert not (tmp_path / "set.bin").exists()


def test_processes_that_begin_together_download_once(home: Home, tmp_path: Path) -> None:
    """The lock is one per opened folder, so that threads stand for processes."""
    found: list[Path] = []
    wanted = remote(home)
    threads = [threading.Thread(target=lambda: found.append(fetch(wanted, tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [tmp_path / "set.bin"] * 4
    assert found[0].read_bytes() == CONTENT
    assert home.asked == [None]
    assert [entry.name for entry in tmp_path.iterdir()] == ["set.bin"]


def test_processes_that_extract_together_leave_whole_files(tmp_path: Path) -> None:
    members = {f"set/{k}.bin": bytes([k]) * 200_000 for k in range(4)}
    archive, place, errors = archive_of(tmp_path / "set.tar.gz", members), tmp_path / "out", []

    def run() -> None:
        try:
            extract(archive, dict.fromkeys(members, 200_000), place)
        except InputError as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert {f"set/{entry.name}": entry.read_bytes() for entry in place.iterdir()} == members


def test_what_has_its_name_is_on_the_disk(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Content is flushed before the name is given: after a power cut no file is there in part."""
    order: list[str] = []
    flush, rename = os.fsync, Path.replace

    def noted(handle: int) -> None:
        order.append(f"flush {Path(os.readlink(f'/proc/self/fd/{handle}')).name}")
        flush(handle)

    monkeypatch.setattr(os, "fsync", noted)

    def renamed(own: Path, to: Path) -> Path:
        order.append(f"name {to.name}")
        return rename(own, to)

    monkeypatch.setattr(Path, "replace", renamed)
    archive = archive_of(tmp_path / "set.tar.gz", {"set/a.bin": b"aa"})
    extract(archive, {"set/a.bin": 2}, tmp_path / "out")
    fetch(remote(home), tmp_path / "in")
    wanted = [("a.bin", "out"), ("set.bin", "in")]
    assert order == [
        line for name, place in wanted for line in (f"flush {name}.part", f"name {name}", f"flush {place}")
    ]


def test_a_wrong_checksum_is_refused_and_nothing_stays(home: Home, tmp_path: Path) -> None:
    wanted = remote(home)
    home.content = CONTENT[:-1] + b"x"
    found = hashlib.sha256(home.content).hexdigest()
    with pytest.raises(InputError) as caught:
        fetch(wanted, tmp_path)
    for part in (str(tmp_path / "set.bin"), wanted.sha256, found):
        assert part in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_stale_part_is_caught_by_the_checksum_and_the_next_try_works(home: Home, tmp_path: Path) -> None:
    (tmp_path / "set.bin.part").write_bytes(b"stale")
    with pytest.raises(InputError, match="SHA-256"):
        fetch(remote(home), tmp_path)
    assert fetch(remote(home), tmp_path).read_bytes() == CONTENT


def test_a_part_that_is_too_long_is_cut_and_checked(home: Home, tmp_path: Path) -> None:
    (tmp_path / "set.bin.part").write_bytes(CONTENT + b"more")
    assert fetch(remote(home), tmp_path).read_bytes() == CONTENT


def test_a_file_that_was_there_is_refused_and_left(home: Home, tmp_path: Path) -> None:
    (tmp_path / "set.bin").write_bytes(b"mine")
    with pytest.raises(InputError, match="remove it"):
        fetch(remote(home), tmp_path)
    assert (tmp_path / "set.bin").read_bytes() == b"mine"
    assert home.asked == []


@pytest.mark.parametrize("content", [b"<html>log in</html>", CONTENT + b"more"])
def test_an_answer_of_another_size_is_refused_before_it_is_written(
    home: Home, tmp_path: Path, content: bytes
) -> None:
    wanted = remote(home)
    home.content = content
    with pytest.raises(InputError, match=rf"holds {len(content)} bytes; expected {len(CONTENT)}"):
        fetch(wanted, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (503, download.ATTEMPTS)])
def test_an_error_of_the_server_is_named(home: Home, tmp_path: Path, status: int, requests: int) -> None:
    home.status = status
    with pytest.raises(InputError, match=rf"HTTP {status}.*--data-dir"):
        fetch(remote(home), tmp_path)
    assert len(home.asked) == requests


def test_no_server_is_an_input_error(home: Home, tmp_path: Path) -> None:
    wanted = remote(home)
    home.shutdown()
    home.server_close()
    with pytest.raises(InputError, match=r"could not download .*refused"):
        fetch(wanted, tmp_path)


def test_a_folder_that_cannot_be_made_is_an_input_error(home: Home, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="could not download"):
        fetch(remote(home), tmp_path / "file" / "folder")


def test_default_folder_is_squints_own() -> None:
    assert "squint" in default_folder().parts


def archive_of(path: Path, members: dict[str, bytes], *, link: str = "") -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "../../outside"
            tar.addfile(info)
    return path


def test_extract_writes_the_wanted_members_and_nothing_else(tmp_path: Path) -> None:
    members = {
        "set/a.bin": b"aa",
        "../../evil": b"x",
        "/abs/evil": b"y",
        "set/readme": b"no",
        "set/b.bin": b"b",
    }
    archive = archive_of(tmp_path / "set.tar.gz", members)
    extract(archive, {"set/a.bin": 2, "set/b.bin": 2}, tmp_path / "in" / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "in" / "out").iterdir()} == {
        "a.bin": b"aa",
        "b.bin": b"b",
    }
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["a.bin", "b.bin", "set.tar.gz"]


def test_extract_leaves_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"mine")
    extract(archive_of(tmp_path / "set.tar.gz", {"set/a.bin": b"aa"}), {"set/a.bin": 2}, tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == b"mine"


def test_extract_refuses_what_is_too_large_missing_linked_or_broken(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "set.tar.gz", {"set/a.bin": b"a" * 4000}, link="set/b.bin")
    with pytest.raises(InputError, match=r"'set/a.bin' has 4000 bytes, too many"):
        extract(archive, {"set/a.bin": 3999}, tmp_path / "out")
    with pytest.raises(InputError, match=r"lacks set/c.bin"):
        extract(archive, {"set/c.bin": 1}, tmp_path / "out")
    with pytest.raises(InputError, match="not a plain file"):
        extract(archive, {"set/b.bin": 1}, tmp_path / "out")
    archive.write_bytes(archive.read_bytes()[:60])
    with pytest.raises(InputError, match="cannot be extracted"):
        extract(archive, {"set/a.bin": 4000}, tmp_path / "out")
    archive.write_bytes(b"no archive")
    with pytest.raises(InputError, match="cannot be extracted"):
        extract(archive, {"set/a.bin": 4000}, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
