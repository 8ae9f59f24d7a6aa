"""Any number of images in bounded memory: decoded ahead, gathered by network size, predicted in batches."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from itertools import islice
from typing import TypeAlias

from langdepth.errors import LangdepthError, ShortMemoryError, UsageError
from langdepth.prediction.pipeline import Key, Outcome, Predictor, Prepared, Request
from langdepth.records import DepthOutput
from langdepth.utils.threads import worker_count

Running: TypeAlias = deque[tuple[list[tuple[Key, Prepared]], Future[DepthOutput]]]


def run_ahead(
    predictor: Predictor, requests: Iterable[tuple[Key, Request]], workers: int | None = None
) -> Generator[tuple[Key, Outcome]]:
    """Decode ahead, gather images of one network size, predict; bounded however many requests there are.

    Raises UsageError where it is gone on with in a forked process, which has none of the threads.
    """
    process = os.getpid()
    with closing(_run_ahead(predictor, requests, workers)) as outcomes:
        for outcome in outcomes:
            yield outcome
            if os.getpid() != process:
                raise UsageError("a stream that was begun before a fork cannot go on in the child; begin it there")


def _run_ahead(
    predictor: Predictor, requests: Iterable[tuple[Key, Request]], workers: int | None
) -> Generator[tuple[Key, Outcome]]:
    late: list[LangdepthError] = []
    requests = _until_an_error(requests, late)
    batch_size, workers = predictor.options.batch_size, workers or worker_count()
    ahead: deque[tuple[Key, Future[Prepared]]] = deque()
    waiting: dict[Hashable, list[tuple[Key, Prepared]]] = {}  # by what can share a batch
    running: Running[Key] = deque()
    with (
        predictor.network.side_by_side(batch_size) as (lanes, begin),
        _joined_at_the_end(ThreadPoolExecutor(workers, "langdepth-decode")) as decoders,
        _joined_at_the_end(ThreadPoolExecutor(lanes, "langdepth-network", begin)) as networks,
    ):
        share = -(-batch_size // lanes)
        while True:
            for key, request in islice(requests, batch_size + workers - len(ahead)):
                ahead.append((key, decoders.submit(predictor.prepare, request)))
            if not ahead:
                break
            key, decoded = ahead.popleft()
            try:
                prepared = decoded.result()
            except LangdepthError as error:  # also a camera that does not fit this image
                yield key, error
                continue
            waiting.setdefault(prepared.group, []).append((key, prepared))
            largest = max(waiting, key=lambda group: len(waiting[group]))
            # Many sizes at once: the fullest batch goes before it is full, so that few images are held.
            if len(waiting[largest]) == share or sum(map(len, waiting.values())) == 4 * batch_size:
                batch = waiting.pop(largest)
                running.append((batch, networks.submit(predictor.infer, batch)))
                yield from _finished(predictor, running, most=lanes)
        running.extend((batch, networks.submit(predictor.infer, batch)) for batch in waiting.values())
        yield from _finished(predictor, running, most=0)
    if late:
        raise late[0]


def _until_an_error(
    requests: Iterable[tuple[Key, Request]], late: list[LangdepthError]
) -> Iterator[tuple[Key, Request]]:
    """The requests; an error that ends them is kept, so that the results of those before it come first."""
    try:
        yield from requests
    except LangdepthError as error:
        late.append(error)


@contextmanager
def _joined_at_the_end(pool: ThreadPoolExecutor) -> Iterator[ThreadPoolExecutor]:
    """The pool; at the end its running work is awaited and the rest dropped."""
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _finished(predictor: Predictor, running: Running[Key], most: int) -> Iterator[tuple[Key, Outcome]]:
    """Results of the oldest batches until ``most`` are left running."""
    while len(running) > most:
        batch, future = running.popleft()
        try:
            output = future.result()
        except UsageError:
            if not predictor.own_sentences(batch):
                raise
            yield from _one_by_one(predictor, batch)
        except ShortMemoryError:
            wait([other for _, other in running])  # what they hold may be all that lacks
            yield from _one_by_one(predictor, batch)
        else:
            yield from predictor.results(batch, output)


def _one_by_one(predictor: Predictor, batch: list[tuple[Key, Prepared]]) -> Iterator[tuple[Key, Outcome]]:
    """The results of a batch that failed by a sentence or for lack of memory: that costs its own image alone."""
    for key, prepared in batch:
        try:
            yield from predictor.run([(key, prepared)])
        except UsageError as error:
            yield key, LangdepthError(f"{prepared.path or 'image in memory'}: {error}")
        except ShortMemoryError as error:
            yield key, error
