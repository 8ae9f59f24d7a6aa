"""The service behind a real socket: clients that are slow, break off or speak no HTTP."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("fastapi")

from langdepth.prediction.pipeline import Predictor
from langdepth.serving.app import Service
from langdepth.serving.limits import Limits
from langdepth.serving.server import Server
from langdepth.utils.network import listen
from tests.helpers import FakeSystem

HEALTH = b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
CHUNKED = b"POST /predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def port() -> Iterator[int]:
    """Of a service that waits half a second for a request."""
    service = Service(Predictor(FakeSystem(), {}, keep_image=False, each_its_words=True), Limits(timeout=0.5))
    with listen("127.0.0.1", 0) as listening:
        server = Server(service)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield listening.getsockname()[1]
        server.stop()
        thread.join(20)
        assert not thread.is_alive()


def ask(port: int, content: bytes) -> bytes:
    """All that comes until the service closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(content)
        found = b""
        while block := client.recv(1 << 16):
            found += block
        return found


@pytest.mark.parametrize("start", [b"", b"POST /predict HTT", b"GET /health HTTP/1.1\r\nHost: a\r\nX: "])
def test_a_head_that_does_not_arrive_is_not_waited_for(start: bytes, port: int) -> None:
    since = time.monotonic()
    assert ask(port, start) == b""
    assert 0.4 < time.monotonic() - since < 10


def test_whoever_has_been_answered_is_given_time_again(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        for pause in (0.3, 0.3, 0):
            client.sendall(HEALTH.replace(b"close", b"keep-alive"))
            found = b""
            while not found.endswith(b"}"):
                found += client.recv(1 << 16)
            assert found.startswith(b"HTTP/1.1 200 OK")
            time.sleep(pause)
        client.sendall(HEALTH[:20])
        assert client.recv(1 << 16) == b""


@pytest.mark.parametrize(
    "content",
    [CHUNKED + b"-5\r\nabc", CHUNKED + b"5\r\nabcdefgh\r\n", b"\x16\x03\x01\x02\0\x01\0\r\n\r\n", b"a b\r\n\r\n"],
)
def test_nonsense_costs_a_line_at_most(content: bytes, port: int, capfd: pytest.CaptureFixture[str]) -> None:
    assert ask(port, content).startswith(b"HTTP/1.1 400 Bad Request")
    assert ask(port, HEALTH).startswith(b"HTTP/1.1 200 OK")
    err = capfd.readouterr().err
    assert "Traceback" not in err
    assert err.count("\n") <= 2
