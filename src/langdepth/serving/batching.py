"""Images of many clients through one system, in batches of one network size.

Data flow: bytes -> ``Predictor.prepare`` (decoded and shrunk, in threads) -> waiting, by what can share a batch ->
``Predictor.infer`` (in the threads that the runtime wants) -> ``Predictor.results`` and encoding (in threads).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from langdepth.errors import LangdepthError, ShortMemoryError, UsageError
from langdepth.prediction.pipeline import Predictor, Prepared, Request
from langdepth.prediction.results import DepthResult
from langdepth.records import DepthOutput
from langdepth.utils.threads import worker_count

T = TypeVar("T")


class FullError(LangdepthError):
    """As many requests are inside as may be."""


@dataclass(eq=False)
class _Waiting:
    """An image that waits for its batch, and what becomes of it: depth at network size."""

    prepared: Prepared
    since: float
    output: asyncio.Future[DepthOutput] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batcher:
    """A system that many coroutines ask at once. Used inside ``running``, in one event loop.

    Args:
        predictor: The system with its options; ``options.batch_size`` images at most are predicted at once.
        wait: Seconds that an image waits for others that are being decoded, to share a batch with them.
        most: Requests that may be inside at once.
    """

    def __init__(self, predictor: Predictor, wait: float, most: int) -> None:
        self.predictor, self.wait, self.most = predictor, wait, most
        self.inside = self.batches = self.images = 0
        self._decoding = 0
        self._waiting: dict[Hashable, list[_Waiting]] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Have the threads; at the end their work is awaited."""
        self._arrived, self._tasks = asyncio.Event(), set[asyncio.Task[None]]()
        batch_size = self.predictor.options.batch_size
        with (
            self.predictor.network.side_by_side(batch_size) as (lanes, begin),
            ThreadPoolExecutor(worker_count(), "langdepth-work") as self._workers,
            ThreadPoolExecutor(lanes, "langdepth-network", begin) as self._networks,
        ):
            self._share, self._free = -(-batch_size // lanes), asyncio.Semaphore(lanes)
            gathering = asyncio.create_task(self._gather())
            try:
                yield
            finally:
                gathering.cancel()
                await asyncio.gather(gathering, *self._tasks, return_exceptions=True)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Be one of those inside. Raises FullError."""
        if self.inside >= self.most:
            raise FullError(f"{self.most} requests are waiting already; ask again later")
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    async def predict(self, request: Request, use: Callable[[DepthResult], T]) -> T:
        """What ``use``, called in a thread, makes of the depth of an image.

        Raises:
            UsageError: For words, a scene or a camera that do not fit.
            LangdepthError: For an image that cannot be used, and what ``use`` raises.
        """
        self._decoding += 1
        try:
            prepared = await self._in_worker(self.predictor.prepare, request)
        finally:
            self._decoding -= 1
            self._arrived.set()
        prepared = replace(prepared, request=replace(request, source=None))  # the file's bytes are not needed any more
        waiting = _Waiting(prepared, asyncio.get_running_loop().time())
        self._waiting.setdefault(self._group(prepared), []).append(waiting)
        output = await waiting.output
        return await self._in_worker(self._finish, prepared, output, use)

    async def _in_worker(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._workers, function, *arguments)

    def _group(self, prepared: Prepared) -> Hashable:
        """Images of one group share a batch; words that hold for all images of a batch have to be the same."""
        request, per_image = prepared.request, self.predictor.system.text_per_image
        shared = None if per_image or request.text is None else request.text.sentence
        return prepared.group, request.scene is None, shared

    def _finish(self, prepared: Prepared, output: DepthOutput, use: Callable[[DepthResult], T]) -> T:
        ((_, result),) = self.predictor.results([(None, prepared)], output)
        if isinstance(result, LangdepthError):
            raise result
        return use(result)

    async def _gather(self) -> None:
        """Send batches on, as long as a thread of the network is free."""
        while True:
            await self._free.acquire()
            batch = await self._next_batch()
            self.batches, self.images = self.batches + 1, self.images + len(batch)
            task = asyncio.create_task(self._run(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _next_batch(self) -> list[_Waiting]:
        """Images that have waited longest, with others of their group; those whose clients gave up are dropped."""
        while not (batch := await self._oldest()):
            pass
        return batch

    async def _oldest(self) -> list[_Waiting]:
        while not self._waiting:
            await self._arrival(None)
        group = min(self._waiting, key=lambda one: self._waiting[one][0].since)
        loop = asyncio.get_running_loop()
        until = loop.time() + self.wait
        while len(self._waiting[group]) < self._share and self._decoding and (left := until - loop.time()) > 0:
            await self._arrival(left)
        images = [one for one in self._waiting.pop(group) if not one.output.done()]
        if images[self._share :]:
            self._waiting[group] = images[self._share :]
        return images[: self._share]

    async def _arrival(self, seconds: float | None) -> None:
        """Wait until another image is decoded, or failed to be."""
        self._arrived.clear()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._arrived.wait(), seconds)

    async def _run(self, batch: list[_Waiting]) -> None:
        loop = asyncio.get_running_loop()
        try:
            images = [one.prepared for one in batch]
            outcomes = await loop.run_in_executor(self._networks, self._infer, images)
        except Exception as error:
            outcomes = [error] * len(batch)
        finally:
            self._free.release()
        for one, outcome in zip(batch, outcomes, strict=True):
            if one.output.done():  # its client gave up
                continue
            if isinstance(outcome, Exception):
                one.output.set_exception(outcome)
            else:
                one.output.set_result(outcome)

    def _infer(self, images: Sequence[Prepared]) -> list[DepthOutput | Exception]:
        """Depth of each image; a sentence that the system refuses and a lack of memory cost their own image alone."""
        try:
            output = self.predictor.infer([(None, image) for image in images])
        except (UsageError, ShortMemoryError) as error:
            if len(images) == 1:
                return [error]
            return [outcome for image in images for outcome in self._infer([image])]
        return [_part(output, index) for index in range(len(images))]


def _part(output: DepthOutput, index: int) -> DepthOutput:
    """What a batch gave for one of its images."""
    found: dict[str, Any] = {}
    for name in ("depth", "scene_probs", "std", "sigma"):
        value = getattr(output, name)
        found[name] = None if value is None else value[index : index + 1]
    return DepthOutput(**found)
