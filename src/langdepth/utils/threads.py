"""Threads that read ahead, decode and encode."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

MOST_THREADS = 1024  # that a runtime is asked for


def worker_count() -> int:
    """How many threads decode and encode images: one for each core, at most 8."""
    return min(8, os.cpu_count() or 1)


@contextmanager
def reading_threads(count: int | None) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads.

    When the block ends by an exception (Ctrl-C, say), work that has not begun is dropped: the pool's own way is to do
    all of it before the exception goes on.

    Args:
        count: Number of threads; None for ``ThreadPoolExecutor``'s own choice.
    """
    with ThreadPoolExecutor(count, thread_name_prefix="langdepth-read") as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
