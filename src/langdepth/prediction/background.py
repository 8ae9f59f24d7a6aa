"""Work in a few threads beside the main one, for example writing files while the next images are predicted."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

_MOST_THREADS = 4


class Background:
    """A few threads and a bounded queue; results come back in the order of their jobs.

    Leaving the ``with`` block waits for what runs and drops what has not begun.
    """

    def __init__(self, name: str, workers: int | None = None) -> None:
        workers = workers or min(_MOST_THREADS, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix=name)
        self._pending: deque[Future[Any]] = deque()
        self._most = 2 * workers

    def __enter__(self) -> Background:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Iterator[Any]:
        """Queue a call, and give the results that are ready; waits for the oldest while too many are queued.

        Raises:
            Exception: What a call raised, when its result is due.
        """
        self._pending.append(self._pool.submit(function, *arguments))
        return self._ready()

    def _ready(self) -> Iterator[Any]:
        while len(self._pending) > self._most or (self._pending and self._pending[0].done()):
            yield self._pending.popleft().result()

    def finish(self) -> Iterator[Any]:
        """The results of all calls that are left, once they are there."""
        while self._pending:
            yield self._pending.popleft().result()
