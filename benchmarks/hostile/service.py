"""Requests to `serve`."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

from .archives import NAMES
from .cases import LONGEST_LINE, OTHERS, SECONDS, Case, Outcome, Random, pool, state
from .changes import NUMBERS, TEXTS, twice
from .images import image_changed, image_content, photo


def service(rng: Random, folder: Path) -> Case:
    """serve, to which one damaged request is sent, then a good one."""
    import socket
    import threading

    ending, image = image_content(rng)
    if rng.random() < 0.5:
        image, change = image_changed(rng, ending, image)
    else:
        change = "a good image"
    method, place, query = b"POST", b"/predict", []
    for name in rng.sample(("text", "scene", "intrinsics", "fov", "format", "x"), rng.choice((0, 0, 1, 2))):
        valid = {
            "fov": ("60",),
            "intrinsics": ("60,60,31.5,23.5",),
            "format": pool("png npz json"),
            "text": ("a room",),
        }
        value = rng.choice((*valid.get(name, ()), *valid.get(name, ()), *NUMBERS[:12], *TEXTS))
        query.append((name, value))
    body, headers = image, [(b"Content-Type", b"image/" + ending.encode())]
    form = rng.random() < 0.4
    if form:
        parts = [(f'name="{name}"', value.encode("utf-8", "replace")) for name, value in query]
        parts.insert(0, (f'name="image"; filename="{rng.choice(TEXTS[:10] + NAMES[:4])}"', image))
        query = []
        body = b"".join(
            b"--xyz\r\nContent-Disposition: form-data; "
            + name.encode("utf-8", "replace")
            + b"\r\n\r\n"
            + value
            + b"\r\n"
            for name, value in parts
        )
        body, headers = body + b"--xyz--\r\n", [(b"Content-Type", b"multipart/form-data; boundary=xyz")]
        if rng.random() < 0.4:
            body, more = twice(rng, body)
            change += f"; form {more}"
    length = str(len(body))
    kind = rng.choice(("none",) * 4 + pool("method place length chunked header accept type bytes"))
    if kind == "method":
        method = rng.choice(
            (b"GET", b"PUT", b"HEAD", b"OPTIONS", b"DELETE", b"TRACE", b"CONNECT", b"X" * 300, b"", b"\xff")
        )
    elif kind == "place":
        place = rng.choice(
            (
                b"/",
                b"/../../etc/passwd",
                b"/%2e%2e/%2e%2e/etc/passwd",
                b"/predict/",
                b"//predict",
                b"/health",
                b"/metrics",
                b"*",
                b"/" + b"a" * 70_000,
                b"/predict%0d%0aX-Y:%20z",
                b"http://other/predict",
                b"/%ff%00",
            )
        )
    elif kind == "length":
        length = rng.choice(
            (*NUMBERS[:11], "9" * 25, "+5", str(len(body) - 1), str(len(body) + 1), str(10**12), "5, 5")
        )
    elif kind == "header":
        name = rng.choice(
            (
                b"Content-Type",
                b"Transfer-Encoding",
                b"Content-Encoding",
                b"Expect",
                b"Host",
                b"Connection",
                b"Upgrade",
                b"X" * 9000,
                b"a b",
                b"",
            )
        )
        value = rng.choice(
            (
                b"gzip",
                b"100-continue",
                b"chunked, chunked",
                b"\xff\xfe",
                b"",
                b"x" * 70_000,
                b"websocket",
                b"a\r\n b",
                b"multipart/form-data",
                b"identity",
            )
        )
        headers.append((name, value))
    elif kind == "accept":
        headers.append(
            (
                b"Accept",
                rng.choice(
                    (
                        b"text/html",
                        b"*/*;q=nan",
                        b"*/*;q=1e400",
                        b",,;;",
                        b"image/png;q=0",
                        b"application/json;q=x, */*",
                        b"a" * 9000,
                        b"\xff",
                    )
                ),
            )
        )
    elif kind == "type" and form:
        headers = [
            (
                b"Content-Type",
                b"multipart/form-data"
                + rng.choice(
                    (
                        b"",
                        b"; boundary=",
                        b"; boundary=" + b"y" * 5000,
                        b"; boundary=\xff",
                        b"; boundary=xyz; charset=x",
                        b'; boundary="',
                    )
                ),
            )
        ]
    from urllib.parse import quote

    target = place + (
        b"?" + "&".join(f"{n}={quote(v.encode('utf-8', 'surrogatepass'))}" for n, v in query).encode() if query else b""
    )
    sent = b"%s %s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" % (method, target) + b"".join(
        n + b": " + v + b"\r\n" for n, v in headers
    )
    if kind == "chunked":
        size = rng.choice((b"%x" % len(body),) * 3 + (b"0", b"ffffffffffffffffff", b"-1", b"x", b"%x;a=b" % len(body)))
        sent += b"Transfer-Encoding: chunked\r\n\r\n" + size + b"\r\n" + body + b"\r\n0\r\n\r\n"
    else:
        sent += b"Content-Length: " + length.encode() + b"\r\n\r\n" + body
    if kind == "bytes":
        sent, more = twice(rng, sent)
        change += f"; request {more}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    good = io.BytesIO()
    from PIL import Image

    Image.fromarray(photo(Random(1))).save(good, "PNG")
    after = b"POST /predict HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(
        good.getvalue()
    )
    answers: list[bytes] = []

    def ask(content: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=8) as client:
            with suppress(OSError):  # answered before all was sent
                client.sendall(content)
            found = b""
            with suppress(OSError):
                while block := client.recv(1 << 16):
                    found += block
            return found

    def clients() -> None:
        until = time.monotonic() + SECONDS
        try:
            while time.monotonic() < until:
                with suppress(OSError):
                    answers.append(ask(sent))
                    break
                time.sleep(0.02)
            answers.append(ask(after + good.getvalue()))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    def right(outcome: Outcome) -> str | None:
        if len(answers) != 2 or not answers[1].startswith(b"HTTP/1.1 200 "):
            return f"a good request after it: {[answer[:200] for answer in answers]!r}"
        status = re.match(rb"HTTP/1\.1 (\d+) ", answers[0])
        if answers[0] and (status is None or not (200 <= int(status[1]) < 500 or int(status[1]) in (503, 504))):
            return f"answered with {answers[0][:300]!r}"
        head, _, content = answers[0].partition(b"\r\n\r\n")
        if head and int(status[1]) >= 400 and b"application/json" in head and method != b"HEAD":
            line = json.loads(content.partition(b"HTTP/1.1")[0])["error"]
            if len(line) > LONGEST_LINE or OTHERS.search(line) or not line.isprintable():
                return f"said {line[:300]!r}"
        return None

    threading.Thread(target=clients, daemon=True).start()
    argv = ["serve", "--port", str(port), "--system", state["small"], "--timeout", "4", "--max-mb", "1"]
    return Case(argv, f"{kind}, {ending}: {change}", right)
