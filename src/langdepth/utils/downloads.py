"""Large files from other people's servers: under their name only when complete, and resumed where a transfer was cut.

Google Drive shows a page with a form before a large file. The library gdown fills it in, too, but it knows no limit of
the size, cannot be aimed at another server by a test, and would be a dependency for these few lines.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from html.parser import HTMLParser
from http.client import HTTPException, HTTPResponse, InvalidURL
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urljoin, urlsplit
from urllib.request import HTTPCookieProcessor, OpenerDirector, Request, build_opener

from tqdm import tqdm

from langdepth.errors import LangdepthError, UsageError, first_line
from langdepth.utils.files import other_content
from langdepth.utils.reading import read_text

_SECONDS = 30.0  # without an answer
_TRIES = 4
_PAUSE = 1.0  # seconds before another try
_BLOCK = 1 << 18
_LONGEST_PAGE = 1 << 20
_PAGES = 3  # that may be between a link and its file
_DIGITS = 18  # of a size; no more are made a number of


class DownloadError(LangdepthError):
    """A file cannot be fetched: the server, the network or the disk."""


def download(url: str, path: Path, *, limit: int, begin: Callable[[int | None], None], form: bool = False) -> None:
    """Fetch a file. One process at a time may fetch ``path``.

    What came of it so far lies beside it, ``.NAME.part``; the next call asks for the rest only, if the server has the
    same file still.

    Args:
        url: http or https.
        path: The file, which is not there yet.
        limit: The most bytes that are taken.
        begin: Called once with the size in bytes, None where the server does not state it, before anything is written.
        form: Follow the form of a page that the server shows instead of the file, as Google Drive does.

    Raises:
        UsageError: The address is none.
        DownloadError: The file cannot be fetched, is none or is too large.
    """
    if not _is_web_address(url):
        raise UsageError(f"'{url}' is no address: it must begin with http:// or https://, and a host")
    part = _Part(path)
    cut = ""
    for _ in range(_TRIES):
        if cut:
            time.sleep(_PAUSE)
        with _answer(url, part, form) as answer:
            size = part.start(answer)
            if not cut:
                _require_room(path, size, part.size, limit)
                begin(size)
            cut = part.receive(answer, size, limit)
        if not cut:
            part.finish()
            return
    of = f" of {size / 1e6:.1f}" if size is not None else ""
    raise DownloadError(
        f"{url}: the transfer was cut at {part.size / 1e6:.1f}{of} MB ({cut}); repeat the command to go on from there"
    )


def _require_room(path: Path, size: int | None, have: int, limit: int) -> None:
    if size is None:
        return
    if size > limit:
        raise DownloadError(f"{path.name}: has {size / 1e9:.1f} GB, more than the {limit / 1e9:.1f} GB that are taken")
    free = shutil.disk_usage(path.parent).free
    if size - have > free:
        raise DownloadError(
            f"{path}: needs {(size - have) / 1e6:,.0f} MB, and the disk has {free / 1e6:,.0f} MB left; free some, or "
            "name another folder with LANGDEPTH_CACHE"
        )


class _Part:
    """What has arrived of a file, and of which version of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = path.with_name(f".{path.name}.part")
        self.state = path.with_name(f".{path.name}.part.json")
        self.version: Any = None
        self.size = 0
        with suppress(OSError, ValueError):
            self.version = json.loads(read_text(self.state, _LONGEST_PAGE))
            self.size = self.content.stat().st_size

    def headers(self) -> dict[str, str]:
        """What asks for the rest alone."""
        return {"Range": f"bytes={self.size}-"} if self.size and self.version else {}

    def start(self, answer: HTTPResponse) -> int | None:
        """Make ready for an answer, which has the rest or the whole; returns the size of the file, if it is stated."""
        if answer.status != 206:
            self.size = 0
        size = _length(answer, self.size)
        self.version = _version(answer, size)
        return size

    def continues(self, answer: HTTPResponse) -> bool:
        """Whether an answer is the rest of the same file."""
        right = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {self.size}-")
        return right and _version(answer, _length(answer, self.size)) == self.version

    def receive(self, answer: HTTPResponse, size: int | None, limit: int) -> str:
        """Write the answer. Returns why it ended too early, "" where it did not. Raises DownloadError."""
        bar = tqdm(total=size, initial=self.size, unit="B", unit_scale=True, disable=None)  # on a terminal alone
        with self._writing(), open(self.content, "r+b" if self.size else "wb") as file, bar:
            self.state.write_text(json.dumps(self.version), encoding="utf-8")
            file.truncate(self.size)
            file.seek(self.size)
            try:
                while block := _read(answer):
                    if self.size == 0:
                        self._require_content(block)
                    if self.size + len(block) > limit:
                        raise DownloadError(f"{self.path.name}: is larger than the {limit / 1e9:.1f} GB that are taken")
                    file.write(block)
                    self.size += len(block)
                    bar.update(len(block))
            except _CutError as error:
                return str(error)
            finally:
                file.flush()
            os.fsync(file.fileno())
        if size is not None and self.size < size:
            return "the server closed the connection"
        if self.size == 0:
            self._require_content(b"")
        return ""

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DownloadError(
                f"{self.path}: cannot be written ({error.strerror or first_line(error)}); what has arrived is kept; "
                "repeat the command when this is mended"
            ) from None

    def _require_content(self, head: bytes) -> None:
        other = other_content(head)
        if other is not None:
            self.remove()
            raise DownloadError(f"{self.path.name}: the server gives a file that is {other}")

    def finish(self) -> None:
        """Give the complete file its name."""
        with self._writing():
            os.replace(self.content, self.path)
        self.state.unlink(missing_ok=True)

    def remove(self) -> None:
        """Forget what has arrived."""
        for file in (self.content, self.state):
            file.unlink(missing_ok=True)
        self.size, self.version = 0, None


def _length(answer: HTTPResponse, before: int) -> int | None:
    """The size of a file of which ``before`` bytes are here and the answer has the rest."""
    stated = answer.headers.get("Content-Length", "")
    return before + int(stated[:_DIGITS]) if stated.isdecimal() else None


def _version(answer: HTTPResponse, size: int | None) -> list[Any] | None:
    """What another version of the file would not have; None where the server does not say."""
    mark = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
    return [mark, size] if mark else None


class _CutError(Exception):
    """A transfer ended too early."""


def _read(answer: HTTPResponse, most: int = _BLOCK) -> bytes:
    try:
        return answer.read(most)
    except (OSError, HTTPException, ValueError) as error:
        raise _CutError(first_line(error)) from None


@contextmanager
def _answer(url: str, part: _Part, form: bool) -> Iterator[HTTPResponse]:
    """The server's answer with the file, or with the rest of it. Raises DownloadError."""
    opener = build_opener(HTTPCookieProcessor())
    address = url
    for _ in range(_PAGES):
        answer = _asked(opener, address, part.headers())
        with answer:
            asked = bool(part.headers())
            if answer.status in (206, 416) and not (asked and part.continues(answer)):
                if not asked:
                    raise DownloadError(f"{url}: the server answers {answer.status}, as to a question for a part")
                part.remove()
                continue
            if not (form and _is_page(answer)):
                yield answer
                return
            try:
                page = _Page(_read(answer, _LONGEST_PAGE).decode("utf-8", "replace"))
                address = page.address(address)
            except (_CutError, ValueError, AssertionError) as error:  # the parser's own are of any of these kinds
                raise DownloadError(f"{url}: the server shows a page that is damaged ({first_line(error)})") from None
            if not page.action:
                raise DownloadError(f"{url}: the server shows a page instead of the file: '{page.words}'")
    raise DownloadError(f"{url}: the server shows one page after another instead of the file")


def _asked(opener: OpenerDirector, address: str, headers: dict[str, str]) -> HTTPResponse:
    if not _is_web_address(address):
        raise DownloadError(f"{address}: the server leads to an address that is neither http nor https")
    request = Request(address, headers={"User-Agent": "langdepth", "Accept-Encoding": "identity", **headers})
    try:
        answer: HTTPResponse = opener.open(request, timeout=_SECONDS)
    except HTTPError as error:
        if error.code == 416:
            return error  # type: ignore[return-value]  # has what an answer has
        said = " ".join(str(error.reason).split())
        raise DownloadError(f"{address}: the server answers {error.code} ({said})") from None
    except (ValueError, OverflowError, InvalidURL):
        raise DownloadError(f"{address}: is, or leads to, no address on the web") from None
    except (OSError, HTTPException) as error:
        reason = error.reason if isinstance(error, URLError) else error
        why = reason if isinstance(reason, str) else first_line(reason)
        raise DownloadError(f"{address}: cannot be reached ({why}); is there a network?") from None
    if not _is_web_address(answer.url) or (address.startswith("https:") and not answer.url.startswith("https:")):
        answer.close()
        raise DownloadError(f"{address}: the server leads to {answer.url}, which is not encrypted; refused")
    return answer


def _is_web_address(address: str) -> bool:
    with suppress(ValueError):  # of brackets that hold no number of a host
        parts = urlsplit(address)
        return parts.scheme in ("http", "https") and bool(parts.hostname)
    return False


def _is_page(answer: HTTPResponse) -> bool:
    return answer.status == 200 and answer.headers.get_content_type() == "text/html"


class _Page(HTMLParser):
    """The form of a page that leads to a file, and the words of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.action = ""
        self._fields: dict[str, str] = {}
        self._inside: list[str] = []
        self._words: list[str] = []
        self.feed(text)
        self.words = " ".join(" ".join(self._words).split())[:200]

    def address(self, base: str) -> str:
        """Where the form leads."""
        action = urljoin(base, self.action)
        join = "&" if urlsplit(action).query else "?"
        return f"{action}{join}{urlencode(self._fields)}" if self._fields else action

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self._inside.append(tag)
        if tag == "form" and given.get("id", "").lower().startswith("download"):
            self.action = given.get("action", "")
        elif tag == "input" and self.action and given.get("type") == "hidden":
            self._fields[given.get("name", "")] = given.get("value", "")

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self._inside):
            self._words.append(data)
