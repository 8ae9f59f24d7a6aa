"""An address, and the service behind it until a signal ends it."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from langdepth.errors import explained, one_line
from langdepth.serving.app import Service, make_app

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_Protocol: Any = AutoHTTPProtocol


class _Impatient(_Protocol):
    """HTTP that closes a connection on which the head of a request does not arrive in time.

    uvicorn waits for ever, and whoever opens many such connections keeps all others out.
    """

    seconds = 60.0
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unwatch()

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:  # the rest has its own limits
            self._unwatch()
        elif self._late is None:
            self._late = self.loop.call_later(self.seconds, self.transport.close)

    def _unwatch(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def _without_traceback(record: logging.LogRecord) -> bool:
    """What uvicorn logs, as one line: a client that breaks off or sends nonsense is no news."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, Exception):
        record.msg, record.args = f"a request was not answered: {explained(error)}", ()
    record.msg, record.args, record.exc_info = one_line(record.getMessage()), (), None
    return True


class Server(uvicorn.Server):
    """A service that finishes what it has begun when it is to stop: by ``stop``, or in the main thread by a signal."""

    def __init__(self, service: Service) -> None:
        self.service = service
        limits = service.limits
        logging.getLogger("uvicorn.error").addFilter(_without_traceback)
        protocol: Any = type("_Impatient", (_Impatient,), {"seconds": limits.timeout})
        super().__init__(
            uvicorn.Config(
                make_app(service),
                http=protocol,
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
