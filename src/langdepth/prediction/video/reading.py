"""The clips that there are: videos, streams and cameras decoded by PyAV, numbered images; upright, 8-bit RGB."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from langdepth.camera import turned_upright
from langdepth.errors import ImageError, LangdepthError, MissingFileError, UsageError, first_line, is_memory_error
from langdepth.prediction.video import sources
from langdepth.prediction.video.clip import TIMEOUT, Clip, Frame, Pixels
from langdepth.prediction.video.hdr import is_hdr, standard_range
from langdepth.prediction.video.sources import KINDS, OWN, ClipOptions
from langdepth.utils.files import not_the_file_itself
from langdepth.utils.images import MAX_PIXELS, MIN_SIDE, check_pixels, read_image

_MOST_BETWEEN = 300  # frames that a first look decodes to get from a key frame to a place
_LEAST_STEP = 1e-5  # seconds, from a frame to one that is not later by its own time
_SAME_LENGTH = 0.02  # share of its stated frames that a whole file may lack
_BT709, _UNSTATED = 1, 2
# (a, b, c, d) of a display matrix, which takes (x, y) to (ax + cy, bx + dy), as the orientation that EXIF numbers.
_ORIENTATIONS = {
    (1, 0, 0, 1): 1,
    (-1, 0, 0, 1): 2,
    (-1, 0, 0, -1): 3,
    (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5,
    (0, 1, -1, 0): 6,
    (0, -1, -1, 0): 7,
    (0, -1, 1, 0): 8,
}


def open_clip(source: str, options: ClipOptions) -> Clip:
    """The clip that a word stands for, see ``sources.is_clip``.

    Raises:
        LangdepthError: It cannot be opened, or there is no image in it.
        UsageError: PyAV is not installed (the extra "video").
    """
    device = sources.webcam(source)
    if device is None and not sources.is_stream(source) and not Path(source).exists():
        if sources.is_pattern(source):
            return _Sequence(source, options)
        raise MissingFileError(f"{source}: no such file")
    if find_spec("av") is None:
        raise UsageError(f"{source}: videos need a package: pip install 'langdepth[video]'")
    return _Video(source, options, device)


class _Sequence(Clip):
    """Numbered images."""

    def __init__(self, source: str, options: ClipOptions) -> None:
        self._files, rate = sources.sequence(source), options.fps or sources.SEQUENCE_RATE
        options, self._size = replace(options, fps=None), (0, 0)
        super().__init__(source, options, rate=rate, duration=len(self._files) / rate)

    def _decoded(self) -> Iterator[tuple[float, Any]]:
        assert self.rate is not None
        for number, file in enumerate(self._files):
            yield number / self.rate, lambda file=file: self._pixels(file)

    def _pixels(self, file: Path) -> Pixels:
        pixels = read_image(file).pixels
        self._size = self._size if all(self._size) else pixels.shape[:2]
        if pixels.shape[:2] != self._size:
            (height, width), other = self._size, pixels.shape
            raise ImageError(f"{file}: {other[1]}x{other[0]} pixels, the frames before have {width}x{height}")
        return pixels

    def sampled(self, count: int) -> Iterator[Frame]:
        chosen = list(self._chosen())
        for index, time, pixels in chosen[:: -(-len(chosen) // count)]:
            yield Frame(index, time, pixels())


class _Video(Clip):
    """A file, a stream or a camera that PyAV reads."""

    def __init__(self, source: str, options: ClipOptions, device: tuple[str, str] | None) -> None:
        super().__init__(source, options, live=sources.is_live(source))
        self._device, self._size = device, (0, 0)
        self._kept: tuple[Any, Any] | None = None
        with _explained(source):
            container, stream = self._open()
            if self.live:  # which need not be possible twice
                self._kept = container, stream
        rate = stream.average_rate or stream.guessed_rate
        self.rate = None if rate is None else float(rate)
        length = stream.duration and stream.duration * stream.time_base
        self.duration = float(length or (container.duration or 0) / 1e6) or None
        self._start, self._is_avi = stream.start_time or 0, container.format.name == "avi"
        # Of Matroska the length is known from 0 on, also where the first frame comes later.
        self._before = 0.0 if length else float(self._start * stream.time_base)
        self._count = 0 if self._is_avi else stream.frames  # there also places without a frame count
        self._as_long_as_stated = self._is_avi and _is_as_long_as_stated(source, container.size)
        if self._kept is None:
            container.close()
        if self.options.start and self.duration and self.options.start >= self.duration:
            raise LangdepthError(
                f"{source}: --start {self.options.start:g} is after its end, {self.duration:.3g} seconds"
            )

    def close(self) -> None:
        """Let go of a camera."""
        if self._kept is not None:
            self._kept[0].close()

    def _open(self) -> tuple[Any, Any]:
        import av

        # What a frame's own header states is known before memory is taken; titles in other encodings do no harm.
        options = {"max_pixels": str(MAX_PIXELS)}
        how: dict[str, Any] = {"options": options, "metadata_errors": "replace"}
        if self._device is not None:
            container = av.open(self._device[1], format=self._device[0], timeout=TIMEOUT, **how)
        elif sources.is_stream(self.name):
            if self.live:
                options["rtsp_transport"] = "tcp"
            container = av.open(self.name, timeout=TIMEOUT, **how)
        else:
            # The kind is given and nothing but files are opened: a playlist would name other places.
            kind = sources.container(sources.read_head(self.name))
            if kind is None:
                other = not_the_file_itself(self.name)
                raise ImageError(other or f"not a video (known: {KINDS})")
            options["protocol_whitelist"] = "file"
            container = av.open(f"file:{self.name}", format=kind, **how)
        try:
            if not container.streams.video:
                raise ImageError("has no images, only sound or text")
            if container.metadata.get("comment", container.metadata.get("COMMENT", "")).startswith(OWN):
                raise ImageError("is a result of langdepth, not a video to predict")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise ImageError("is coded in a way that FFmpeg does not know; save it as H.264, for example")
            width, height = stream.codec_context.width, stream.codec_context.height
            if width and min(width, height) < MIN_SIDE:
                raise ImageError(f"{width}x{height} pixels is too small; the smaller side must be at least {MIN_SIDE}")
            check_pixels(width, height, MAX_PIXELS)
        except BaseException:
            container.close()
            raise
        stream.thread_type = "AUTO"
        return container, stream

    def _decoded(self) -> Iterator[tuple[float, Any]]:
        with _explained(self.name):
            container, stream = self._kept or self._open()
        with closing(container):
            start = self.options.start
            if start and not self.live:
                with suppress(ValueError, OSError):  # where it cannot be sought, it is read from the beginning on
                    container.seek(self._start + int(start / stream.time_base), stream=stream)
            yield from self._timed(container, stream)

    def _timed(self, container: Any, stream: Any) -> Iterator[tuple[float, Any]]:
        import av

        damaged, count, last, first = 0, 0, -1.0, None
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except (av.FFmpegError, OSError) as error:
                self.problems.append(f"{self.name}: reading it ended early ({first_line(error)})")
                break
            if packet is None:
                break
            try:
                frames = packet.decode()
            except av.FFmpegError:
                damaged += 1
                continue
            for frame in frames:
                count += 1
                place = frame.dts if self._is_avi else frame.pts  # which does not state when a frame is shown
                time = None if place is None else float((place - self._start) * frame.time_base)
                if self.live and time is not None:
                    first = time if first is None else first
                    time -= first
                time = last + 1 / (self.rate or sources.SEQUENCE_RATE) if time is None else time
                last = max(time, last + _LEAST_STEP) if count > 1 else max(time, 0.0)  # times rise
                yield last, lambda frame=frame: self._pixels(frame)
        if damaged:
            self.problems.append(f"{self.name}: {damaged} damaged places are left out")
        self._require_whole(count, last)

    def _require_whole(self, count: int, last: float) -> None:
        if self.live:
            self.problems.append(f"{self.name}: no more frames come after {max(last, 0):.1f} s; is it still connected?")
            return
        length = self.duration or 0
        missing = length - self._before - last - 2 / (self.rate or 1)
        if self.problems or self.options.start or self._as_long_as_stated:  # an AVI repeats its last frame without one
            return
        if self._count and count < self._count * (1 - _SAME_LENGTH) - 1:
            self.problems.append(f"{self.name}: cut or damaged; it states {self._count} frames and has {count}")
        elif not self._count and missing > max(0.2, _SAME_LENGTH * length):
            self.problems.append(f"{self.name}: cut; it states {length:.1f} s and ends after {max(last, 0):.1f} s")

    def _pixels(self, frame: Any) -> Pixels:
        """Upright RGB of one size, that of the first frame."""
        with _explained(self.name):
            if is_hdr(frame):
                pixels = standard_range(frame)
            else:
                unstated = frame.colorspace == _UNSTATED and frame.height >= 720  # what players take it for
                pixels = frame.to_ndarray(format="rgb24", **({"src_colorspace": _BT709} if unstated else {}))
            pixels = turned_upright(np.ascontiguousarray(pixels), _orientation(frame))
            self._size = self._size if all(self._size) else pixels.shape[:2]
            if pixels.shape[:2] != self._size:  # a stream may change it
                from PIL import Image

                pixels = np.asarray(Image.fromarray(pixels).resize(self._size[::-1], Image.Resampling.BICUBIC))
            return pixels

    def sampled(self, count: int) -> Iterator[Frame]:
        """Frames after the places that are sought, in a decoder of its own; none where it cannot be sought."""
        import av

        if self.live or self.duration is None:
            return
        start, end = self.options.start or 0.0, min(self.duration, self.options.end or math.inf)
        with suppress(av.FFmpegError, OSError, ValueError):
            container, stream = self._open()
            with closing(container):
                for index in range(count):
                    place = start + (end - start) * index / count
                    container.seek(self._start + int(place / stream.time_base), stream=stream)
                    frame = self._at(place, container.decode(stream))
                    if frame is not None:
                        yield Frame(index, place, self._pixels(frame))

    def _at(self, place: float, frames: Iterator[Any]) -> Any:
        """The first of ``frames``, which begin at a key frame, that is due at a time, or one before it."""
        frame = None
        for frame in islice(frames, _MOST_BETWEEN):
            if frame.pts is None or (frame.pts - self._start) * frame.time_base >= place:
                break
        return frame


def _orientation(frame: Any) -> int:
    """How its display matrix turns and mirrors a frame, as EXIF numbers it; 1 for none, and for slanted ones."""
    from av.sidedata.sidedata import Type

    matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return 1
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix)[:36])
    return _ORIENTATIONS.get(tuple((one > 0) - (one < 0) for one in (a, b, c, d)), 1)


def _is_as_long_as_stated(source: str, size: int) -> bool:
    """Whether a file of ``size`` bytes is the AVI, to its end, that its beginning states."""
    head = b"" if sources.is_stream(source) else sources.read_head(source)
    return head.startswith(b"RIFF") and abs(int.from_bytes(head[4:8], "little") + 8 - size) <= 1


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """What FFmpeg says about a clip, as one line that names it."""
    import av

    try:
        yield
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from None
    except MemoryError:
        raise ImageError(f"{name}: not enough memory to decode it; make it smaller") from None
    except (av.error.TimeoutError, av.error.ExitError):
        raise LangdepthError(f"{name}: nothing came within {TIMEOUT:g} seconds") from None
    except (av.InvalidDataError, av.error.EOFError):
        raise ImageError(f"{name}: damaged, or its end is missing; copy or record it again") from None
    except (av.FFmpegError, OSError, ValueError) as error:
        if is_memory_error(error):
            raise ImageError(f"{name}: not enough memory to decode it; make it smaller") from None
        reason = getattr(error, "strerror", None) or first_line(error)
        raise LangdepthError(f"{name}: cannot be read ({reason})") from None
