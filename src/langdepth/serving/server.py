"""An address, and the service behind it until a signal ends it."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from langdepth.serving.app import Service, make_app

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Server(uvicorn.Server):
    """A service that finishes what it has begun when it is to stop: by ``stop``, or in the main thread by a signal."""

    def __init__(self, service: Service) -> None:
        self.service = service
        limits = service.limits
        super().__init__(
            uvicorn.Config(
                make_app(service),
                log_level="error",
                access_log=False,
                server_header=False,
                ws="none",
                lifespan="on",
                limit_concurrency=2 * limits.queue + 256,  # connections, also those that only listen
                timeout_graceful_shutdown=int(limits.timeout) + 5,
            )
        )

    def stop(self) -> None:
        """Take no further requests and end once those inside are answered."""
        self.service.stopping = self.should_exit = True

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Of a signal; the second one does not wait."""
        self.force_exit = self.should_exit
        self.stop()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals; uvicorn's own way is to raise them once more at the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def place(listening: socket.socket) -> str:
    """The address of a socket as a URL."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
