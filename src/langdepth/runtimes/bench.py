"""How fast each runtime computes a system on this machine, and how far its depth is from the first one's.

Each choice computes in a process of its own, which shows its memory; they take turns, A B C A B C, so that all get the
same machine. Imports no torch.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from langdepth.errors import LangdepthError, UsageError, explained
from langdepth.prediction.options import Precision
from langdepth.records import Runtime
from langdepth.runtimes.comparison import Difference
from langdepth.runtimes.opening import load, runtimes_here
from langdepth.utils.images import read_image

ROUNDS = 3  # at least
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is computed.

    ``system``, ``clip_weights``, ``device`` (of torch): as ``opening.load`` takes them. ``size``: (height, width) that
    the images at ``paths`` are resized to first, None for their own.
    """

    system: str
    paths: Sequence[Path]
    size: tuple[int, int] | None = None
    clip_weights: str | None = None
    device: str = "auto"

    def images(self) -> list[Pixels]:
        """Decoded. Raises ImageError for one that cannot be read."""
        decoded = [read_image(path).pixels for path in self.paths]
        if self.size is None:
            return decoded
        sides, averaged = self.size[::-1], Image.Resampling.BILINEAR
        return [np.asarray(Image.fromarray(pixels).resize(sides, averaged)) for pixels in decoded]


@dataclass(kw_only=True)
class Measured:
    """One way to compute a system, and what it took.

    ``start_seconds``: from nothing to the depth of the first image, imports included. ``rounds``: seconds for one
    image, from its pixels to its depth at its own size. ``peak_bytes``: of its process, None where the operating system
    does not state it. ``difference``: from the first choice's depth, None for that one. ``failed``: why it cannot
    compute.
    """

    runtime: Runtime
    dtype: Precision = "float32"
    start_seconds: float = 0.0
    rounds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    difference: Difference | None = None
    failed: LangdepthError | None = None

    @property
    def seconds(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.rounds)


def choices_here(system: str) -> list[Measured]:
    """Runtimes and precisions for a system with what is installed; bfloat16 where the processor has units for it."""
    runtimes = runtimes_here(system)
    low = [one for one in runtimes if one != "onnx"] if _has_bfloat16_units() else []
    return [Measured(runtime=one) for one in runtimes] + [Measured(runtime=one, dtype="bfloat16") for one in low]


def measure(
    choices: Sequence[Measured], subject: Subject, *, threads: int | None = None, seconds: float = 10.0
) -> None:
    """Let each choice predict the images again and again, and fill in what it took.

    Args:
        choices: The first one is what the others are compared with.
        subject: What they compute.
        threads: Threads that each computes with; None: as many as there are cores for the process.
        seconds: How long to measure; at least ``ROUNDS`` times, however long that takes.

    Raises:
        ImageError: An image cannot be read.
        LangdepthError: No choice can compute.
    """
    images, expected = subject.images(), None
    with ExitStack() as stack:
        stack.enter_context(_threads(threads))
        pipes = []
        for one in choices:
            begun = time.perf_counter()
            pipes.append(stack.enter_context(_process(one, subject, images)))
            with _reported(one):
                depths = [_received(pipes[-1])]
                one.start_seconds = time.perf_counter() - begun
                depths += [_received(pipes[-1]) for _ in images[1:]]
                if expected is not None:
                    one.difference = Difference()
                    for found, other in zip(depths, expected, strict=True):
                        one.difference.add(found[None], other[None])
                expected = expected or depths
        _require_one(choices)
        end, rounds = time.perf_counter() + seconds, 0
        while rounds < ROUNDS or time.perf_counter() < end:
            rounds += 1
            for one, pipe in zip(choices, pipes, strict=True):
                if not one.failed:
                    with _reported(one):
                        pipe.send(True)
                        taken, one.peak_bytes = _received(pipe)
                        one.rounds.append(taken)
            _require_one(choices)


def _require_one(choices: Sequence[Measured]) -> None:
    """Raise what is wrong with the first one where none can compute."""
    if choices and all(one.failed for one in choices):
        raise choices[0].failed or LangdepthError


@contextmanager
def _process(one: Measured, subject: Subject, images: list[Pixels]) -> Iterator[Any]:
    """A process of its own for a choice, and the pipe to it."""
    context = multiprocessing.get_context("spawn")
    pipe, inside = context.Pipe()
    process = context.Process(target=_serve, args=(inside, one.runtime, one.dtype, subject, images), daemon=True)
    process.start()
    inside.close()  # so that the end of the process is met here
    try:
        yield pipe
    finally:
        process.terminate()
        process.join()


def _serve(pipe: Any, runtime: Runtime, dtype: Precision, subject: Subject, images: list[Pixels]) -> None:
    """The process of a choice: the depth of each image, and then, whenever it is asked, what predicting them takes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it ends it
    warnings.simplefilter("ignore")
    try:
        device = subject.device if runtime == "torch" else None
        system: Any = load(
            subject.system, runtime=runtime, device=device, dtype=dtype, clip_weights=subject.clip_weights
        )
        for image in images:
            pipe.send(system.predict(image, dtype=dtype, sky="keep").depth)
        while pipe.recv():
            begun = time.perf_counter()
            for image in images:
                system.predict(image, dtype=dtype)
            pipe.send(((time.perf_counter() - begun) / len(images), _peak_bytes()))
    except Exception as error:  # of any library
        pipe.send((UsageError if isinstance(error, UsageError) else LangdepthError)(explained(error)))


def _received(pipe: Any) -> Any:
    found = pipe.recv()
    if isinstance(found, LangdepthError):
        raise found
    return found


@contextmanager
def _reported(one: Measured) -> Iterator[None]:
    """What goes wrong with one choice does not end the others."""
    try:
        yield
    except LangdepthError as error:
        one.failed = error
    except (EOFError, OSError):
        one.failed = LangdepthError(f"the process of {one.runtime} was ended, perhaps for lack of memory")


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Processes that are started inside compute with so many threads."""
    before = os.environ.get("OMP_NUM_THREADS")
    if count is not None:
        os.environ["OMP_NUM_THREADS"] = str(count)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("OMP_NUM_THREADS", None)
        else:
            os.environ["OMP_NUM_THREADS"] = before


# -- the machine -----------------------------------------------------------------------------------------------------


def processor() -> str:
    """Its name, where the operating system states it."""
    found = re.search(r"^model name\s*:(.*)$", _content("/proc/cpuinfo"), re.MULTILINE)
    if found:
        return found[1].strip()
    import platform

    return platform.processor() or platform.machine()


def _has_bfloat16_units() -> bool:
    return re.search(r"^(flags|Features)\b.*bf16", _content("/proc/cpuinfo"), re.MULTILINE) is not None


def _peak_bytes() -> int | None:
    """The most memory that this process had at a time."""
    found = re.search(r"^VmHWM:\s*(\d+) kB$", _content("/proc/self/status"), re.MULTILINE)
    return None if found is None else 1024 * int(found[1])


def _content(path: str) -> str:
    """Of a file that Linux makes up; elsewhere nothing."""
    return Path(path).read_text(errors="replace") if Path(path).is_file() else ""
