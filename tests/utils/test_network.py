"""A server that cannot be reached is known within seconds, and no client is left to its retries."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import constants

from langdepth.errors import CheckpointError
from langdepth.utils.network import hub_or_cache, unreachable
from langdepth.weights import checkpoint


class Answers(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_error(503)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that says nothing but no."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    httpd = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> str:
    """An address where nobody listens."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{one.getsockname()[1]}"


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An address that takes connections and never answers."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as one:
        yield f"http://127.0.0.1:{one.getsockname()[1]}"


def test_whatever_answers_can_be_reached(server: str) -> None:
    assert unreachable(server) is None
    assert unreachable("no address at all") is None  # whoever downloads from it says what is wrong


def test_what_does_not_answer_cannot(closed: str, silent: str) -> None:
    assert "refused" in str(unreachable(closed))
    assert "timed out" in str(unreachable(silent, seconds=0.2))


def test_hub_clients_work_from_the_cache_only_while_the_hub_is_away(
    closed: str, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", closed)
    with hub_or_cache():
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE
    monkeypatch.setattr(constants, "ENDPOINT", server)
    with hub_or_cache():
        assert not constants.HF_HUB_OFFLINE


def test_an_unreachable_hub_is_one_line_at_once(
    closed: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The client's own six tries take half a minute and print as many lines."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", closed)
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=r"not in the cache .* and the hub cannot be reached"):
        checkpoint.load("nobody/nothing-of-this-name", offline=False)
    assert time.monotonic() - start < 5
    assert capfd.readouterr().err == ""
