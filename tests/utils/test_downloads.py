"""Downloads are complete or not there at all, whatever the server, the network and the disk do."""

from __future__ import annotations

import email.message
import errno
import io
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import OpenerDirector
from urllib.response import addinfourl

import pytest

from langdepth.errors import UsageError
from langdepth.utils import downloads
from langdepth.utils.downloads import DownloadError, download
from tests.file_server import FORM, QUOTA, FileServer, serving

CONTENT = bytes(range(256)) * 4000  # about a million bytes


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(downloads, "_PAUSE", 0)
    with serving() as state:
        state.content = CONTENT
        yield state


def fetch(server: FileServer, path: Path, where: str = "file.pth", **options: Any) -> list[int | None]:
    """Download to ``path``; returns the sizes that were announced."""
    sizes: list[int | None] = []
    download(f"{server.url}/{where}", path, begin=sizes.append, **{"limit": 1 << 30, **options})
    return sizes


def refused(server: FileServer, path: Path, *words: str, **options: Any) -> None:
    """It is, in one line with ``words``, and the file is not there."""
    with pytest.raises(DownloadError) as caught:
        fetch(server, path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message
    assert not path.exists()


def test_a_file(server: FileServer, tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.pth"
    path.parent.mkdir()
    assert fetch(server, path) == [len(CONTENT)]
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]


def test_a_server_that_does_not_state_the_size(server: FileServer, tmp_path: Path) -> None:
    server.length = False
    assert fetch(server, tmp_path / "file.pth") == [None]
    assert (tmp_path / "file.pth").read_bytes() == CONTENT


def test_a_cut_transfer_goes_on_where_it_was_cut(server: FileServer, tmp_path: Path) -> None:
    server.cuts = [600_000, 100_000]
    assert fetch(server, tmp_path / "file.pth") == [len(CONTENT)]  # announced once
    assert (tmp_path / "file.pth").read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == ["", "bytes=600000-", "bytes=700000-"]


def test_a_transfer_that_is_cut_again_and_again_goes_on_with_the_next_call(server: FileServer, tmp_path: Path) -> None:
    server.cuts = [300_000, 0, 0, 0]
    refused(server, tmp_path / "file.pth", "cut at 0.3 of 1.0 MB", "repeat the command")
    fetch(server, tmp_path / "file.pth")
    assert server.asked[-1][1] == "bytes=300000-"
    assert (tmp_path / "file.pth").read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [tmp_path / "file.pth"]


@pytest.mark.parametrize("change", ["content", "no mark", "no ranges", "shorter"])
def test_the_rest_of_another_file_is_not_taken(server: FileServer, tmp_path: Path, change: str) -> None:
    server.cuts = [300_000, 0, 0, 0]
    server.mark = None if change == "no mark" else server.mark
    refused(server, tmp_path / "file.pth", "was cut")
    server.content = CONTENT[100_000:][::-1] if change == "content" else CONTENT[::-1]
    server.ranges = change != "no ranges"
    if change == "shorter":
        server.content = CONTENT[:1000]
    elif change == "content":
        server.mark = '"two"'
    fetch(server, tmp_path / "file.pth")
    assert (tmp_path / "file.pth").read_bytes() == server.content


def test_the_form_before_a_large_file_is_followed(server: FileServer, tmp_path: Path) -> None:
    server.page = FORM
    server.cuts = [10]
    assert fetch(server, tmp_path / "file.pth", "uc?id=abc", form=True) == [len(CONTENT)]
    assert (tmp_path / "file.pth").read_bytes() == CONTENT
    assert [path.partition("?")[0] for path, _ in server.asked] == ["/uc", "/download"] * 2


def test_a_small_file_comes_without_form(server: FileServer, tmp_path: Path) -> None:
    fetch(server, tmp_path / "file.pth", "uc?id=abc", form=True)
    assert len(server.asked) == 1


def test_a_page_without_form_is_quoted(server: FileServer, tmp_path: Path) -> None:
    server.page = QUOTA
    words = ("a page instead of the file", "Quota exceeded", "can't view or download this file at this time")
    refused(server, tmp_path / "file.pth", *words, where="uc?id=abc", form=True)
    assert list(tmp_path.iterdir()) == []


def test_pages_without_end(server: FileServer, tmp_path: Path) -> None:
    server.page = FORM.replace("/download", "/uc")
    refused(server, tmp_path / "file.pth", "one page after another", where="uc?id=abc", form=True)


def test_a_form_that_leads_to_a_file_of_this_machine(server: FileServer, tmp_path: Path) -> None:
    server.page = FORM.replace("/download?hl=en", "file:///etc/hostname")
    refused(server, tmp_path / "file.pth", "neither http nor https", where="uc?id=abc", form=True)


def test_a_web_page_instead_of_the_file(server: FileServer, tmp_path: Path) -> None:
    server.html = True
    refused(server, tmp_path / "file.pth", "file.pth", "a web page instead of the file")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_file(server: FileServer, tmp_path: Path) -> None:
    server.content = b""
    refused(server, tmp_path / "file.pth", "empty")


OK, PAGE = b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\nabc", "more than the 1.1 GB"),
        (b"HTTP/1.1 206 Part\r\nContent-Range: bytes 0-2/9\r\n\r\nabc", "answers 206, as to a question for a part"),
        (b"HTTP/1.1 416 Range\r\n\r\n", "answers 416, as to a question for a part"),
        (b"HTTP/1.1 302 Found\r\nLocation: /file\r\n\r\n", "infinite loop. The last"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://[x/\r\n\r\n", "is, or leads to, no address"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nabc", "cut at 0.0 MB"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:99999999/\r\n\r\n", "cannot be reached"),
        (PAGE + b"Transfer-Encoding: chunked\r\n\r\nzz", "a page that is damaged"),
        (PAGE + b"\r\n<![x[", "a page that is damaged"),
        (PAGE + b"\r\n<form id=download-form action='http://[x'>", "a page that is damaged"),
    ],
)
def test_a_server_that_says_what_cannot_be(server: FileServer, tmp_path: Path, answer: bytes, words: str) -> None:
    server.raw = answer
    refused(server, tmp_path / "file.pth", words, form=True)


def test_a_server_that_leads_to_another_kind_of_address(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = addinfourl(io.BytesIO(CONTENT), email.message.Message(), "ftp://host/file")
    monkeypatch.setattr(OpenerDirector, "open", lambda *_, **__: answer)
    refused(server, tmp_path / "file.pth", "leads to ftp://host/file", "refused")


def test_an_error_of_the_server(server: FileServer, tmp_path: Path) -> None:
    refused(server, tmp_path / "file.pth", "/missing", "404", where="missing")


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        closed = FileServer()
        closed.url = f"http://127.0.0.1:{one.getsockname()[1]}"
        refused(closed, tmp_path / "file.pth", "cannot be reached", "Connection refused")


@pytest.mark.parametrize("url", ["file:///etc/hostname", "model.pt", "ftp://host/file", "http://[x/y", "http:///y"])
def test_addresses_of_other_kinds(url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="http://"):
        download(url, tmp_path / "file", limit=10, begin=lambda size: None)


@pytest.mark.parametrize("stated", [True, False])
def test_a_file_that_is_too_large(server: FileServer, tmp_path: Path, stated: bool) -> None:
    server.length = stated
    refused(server, tmp_path / "file.pth", "more than" if stated else "is larger than", limit=500_000)


def test_nobody_agrees(server: FileServer, tmp_path: Path) -> None:
    def no(size: int | None) -> None:
        raise UsageError("no")

    with pytest.raises(UsageError):
        download(f"{server.url}/file.pth", tmp_path / "file.pth", limit=1 << 30, begin=no)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda folder: usage)
    refused(server, tmp_path / "file.pth", "the disk has 0 MB left", "LANGDEPTH_CACHE")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_in_mid_download(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(downloads.os, "fsync", full)
        refused(server, tmp_path / "file.pth", "file.pth", "No space left on device", "kept")
    fetch(server, tmp_path / "file.pth")
    assert (tmp_path / "file.pth").read_bytes() == CONTENT


def test_a_write_that_is_refused_in_the_middle(server: FileServer, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")  # not on Windows
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
    try:
        refused(server, tmp_path / "file.pth", "file.pth: cannot be written (File too large)", "kept")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    fetch(server, tmp_path / "file.pth")
    assert server.asked[-1][1] == "bytes=500000-"
    assert (tmp_path / "file.pth").read_bytes() == CONTENT
