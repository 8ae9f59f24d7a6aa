"""A clip: which of its frames are taken, each with its time, decoded ahead in a thread."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from langdepth.errors import LangdepthError
from langdepth.prediction.video import sources
from langdepth.prediction.video.sources import ClipOptions

Pixels = npt.NDArray[np.uint8]

TIMEOUT = 10.0  # seconds without a byte of a stream or camera
_AHEAD = 4  # frames that are decoded before somebody takes them


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame. number: its place among those that are taken, from 0. time: seconds from the clip's beginning.

    pixels: (H, W, 3) uint8 RGB, upright.
    """

    number: int
    time: float
    pixels: Pixels


@dataclass(eq=False)
class Clip:
    """A clip that can be read.

    name: as the user wrote it. live: frames that nobody takes are gone. duration: seconds, rate: frames per second
    (its mean), each None where it is not known. What reading finds: problems (one line each), and how many frames were
    dropped because nobody took them in time.
    """

    name: str
    options: ClipOptions
    live: bool = False
    duration: float | None = None
    rate: float | None = None
    problems: list[str] = field(default_factory=list)
    dropped: int = 0

    @property
    def count(self) -> int | None:
        """About how many frames will be taken."""
        ends = [end for end in (self.duration, self.options.end) if end is not None]
        rates = [rate for rate in (self.rate, self.options.fps) if rate is not None]
        if not ends or not rates or self.live:
            return None
        return max(1, round((min(ends) - (self.options.start or 0)) * min(rates)))

    def frames(self, skip: int = 0) -> Generator[Frame]:
        """The frames that the options choose, but the first ``skip``; decoded ahead in a thread.

        Of a live clip those come that can be taken in time. Raises LangdepthError.
        """
        chosen = (Frame(index, time, pixels()) for index, time, pixels in self._chosen() if index >= skip)
        return ahead(chosen, self)

    def close(self) -> None:
        """Let go of a camera."""

    def sampled(self, count: int) -> Iterator[Frame]:
        """About ``count`` frames spread over those that are chosen, for a first look; none of a live clip."""
        raise NotImplementedError

    def _decoded(self) -> Iterator[tuple[float, Any]]:
        """Time and what makes the pixels of each frame, from the option ``start`` or a little before it on."""
        raise NotImplementedError

    def _chosen(self) -> Iterator[tuple[int, float, Any]]:
        start, end, fps = self.options.start or 0.0, self.options.end, self.options.fps
        index, due = 0, start
        for time, pixels in self._decoded():
            if end is not None and time >= end - 1e-6:
                return
            if time < due - 1e-6:
                continue
            if fps is not None:
                due += (math.floor((time - due) * fps + 1e-6) + 1) / fps
            yield index, time, pixels
            index += 1
        if index == 0:
            chosen = "" if due == start == 0 else f" from second {start:g} on"
            hint = "; an MP4 must begin with its table of contents, or its server must be able to seek"
            raise LangdepthError(f"{self.name}: has no frames{chosen}{hint if sources.is_stream(self.name) else ''}")


def ahead(frames: Iterable[Frame], clip: Clip) -> Generator[Frame]:
    """The same in order, made by a thread that is a few ahead; of a live clip those that can be taken in time."""
    ready: queue.Queue[Any] = queue.Queue(1 if clip.live else _AHEAD)
    stopped = threading.Event()

    def put(one: Any, *, dropping: bool) -> None:
        while not stopped.is_set():
            try:
                ready.put(one, timeout=0 if dropping else 0.1)
                return
            except queue.Full:
                if dropping:
                    with suppress(queue.Empty):
                        ready.get_nowait()
                        clip.dropped += 1

    def read() -> None:
        try:
            with closing(iter(frames)) as reading:  # type: ignore[type-var]
                for frame in reading:
                    put(frame, dropping=clip.live)
                    if stopped.is_set():
                        return
            put(None, dropping=False)
        except BaseException as error:
            put(error, dropping=False)

    thread = threading.Thread(target=read, name="langdepth-clip", daemon=True)
    thread.start()
    try:
        while (one := ready.get()) is not None:
            if isinstance(one, BaseException):
                raise one
            yield one
    finally:
        stopped.set()
        thread.join(2 * TIMEOUT)


def rate_of(clip: Clip) -> Fraction:
    """A plain number of frames per second for files that want one; times say the rest."""
    rate = clip.options.fps or clip.rate or sources.SEQUENCE_RATE
    return Fraction(rate).limit_denominator(1001)
