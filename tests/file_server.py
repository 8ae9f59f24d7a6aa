"""A server on this machine that gives one file as Google Drive and others do, and as they should not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

FORM = """<html><head><title>Google Drive - Virus scan warning</title><style>.x{color:red}</style></head><body>
<p>Google Drive can't scan this file for viruses. model.pt (1.2G) is too large. </p>
<form id="download-form" action="/download?hl=en" method="get"><input type="submit" value="Download anyway">
<input type="hidden" name="id" value="{id}"><input type="hidden" name="confirm" value="t&amp;1"></form></body></html>"""
QUOTA = """<html><head><title>Google Drive - Quota exceeded</title><script>var words = "nothing";</script></head><body>
<p>Sorry, you can't view or download this file at this time.</p></body></html>"""


class FileServer:
    """What is served, and what was asked.

    Attributes:
        content: The file.
        page: What ``/uc`` shows before it, "" for the file itself; "{id}" stands for the id asked for.
        cuts: After how many bytes each of the next transfers is cut.
        mark: The file's ETag, None for none.
        ranges: Whether a part of the file can be asked for.
        length: Whether the size is stated.
        html: Whether ``/NAME`` is a web page instead.
        raw: What is sent instead of all this, status line and headers too.
        asked: Path and Range of every request.
    """

    def __init__(self) -> None:
        self.content = b""
        self.page = ""
        self.cuts: list[int] = []
        self.mark: str | None = '"one"'
        self.ranges, self.length, self.html = True, True, False
        self.raw = b""
        self.asked: list[tuple[str, str]] = []
        self.url = ""


@contextmanager
def serving() -> Iterator[FileServer]:
    """A server for the time of a test."""
    state = FileServer()

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, fields = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
            state.asked.append((self.path, self.headers.get("Range", "")))
            if state.raw:
                self.close_connection = True
                self.wfile.write(state.raw)
            elif path == "/missing":
                self.send_error(404)
            elif path == "/uc" and state.page:
                self.show(state.page.replace("{id}", fields["id"][0]))
            elif path == "/download" and fields != {"hl": ["en"], "id": ["abc"], "confirm": ["t&1"]}:
                self.send_error(400)
            elif state.html and path != "/uc":
                self.show("<!DOCTYPE html><html>log in</html>")
            else:
                self.give()

        def show(self, page: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(page.encode())

        def give(self) -> None:
            asked = self.headers.get("Range", "")
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and state.ranges else 0
            rest = state.content[start:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(state.content) - 1}/{len(state.content)}")
            self.send_header("Content-Type", "application/octet-stream")
            if state.length:
                self.send_header("Content-Length", str(len(rest)))
            if state.mark is not None:
                self.send_header("ETag", state.mark)
            self.end_headers()
            with suppress(OSError):  # nobody listens any more
                self.wfile.write(rest[: state.cuts.pop(0)] if state.cuts else rest)

        def log_message(self, *arguments: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
    state.url = f"http://127.0.0.1:{httpd.server_port}"
    try:
        yield state
    finally:
        httpd.shutdown()
        httpd.server_close()
