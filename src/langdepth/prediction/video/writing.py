"""Files that hold a whole clip: lossless 16-bit depth, colors, the frames beside their colors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from langdepth.errors import ImageError, LangdepthError, first_line
from langdepth.prediction.options import ColorScale, reversed_colormap
from langdepth.prediction.results import DepthResult
from langdepth.prediction.video.sources import OWN
from langdepth.prediction.viz import color_with_legend
from langdepth.utils.files import real_path, temporary_path

Pixels = npt.NDArray[Any]

CUT = ".cut"  # of the name of a clip that was interrupted, before its ending
_TICKS = 60_000  # per second: 24, 25, 30, 50, 60 and 30000/1001 frames a second fall on whole ones
_LARGEST = 65535
_BT709, _LIMITED = 1, 1
_H264 = {"crf": "18", "preset": "veryfast", "g": "30", "bf": "0"}
_MPEG4 = {"qmin": "2", "qmax": "4", "g": "30"}  # where there is no H.264
# Written piece by piece, so that what is there can be played at any time; at the end a plain MP4 file.
_PIECES = {"movflags": "hybrid_fragmented+frag_keyframe", "flush_packets": "1"}


class ClipFacts(NamedTuple):
    """What holds for all frames of a clip.

    colors: with both ends. unit: what one step of the 16-bit depth stands for, in metres for metric depth. rate: about
    how many frames there are per second.
    """

    colors: ColorScale
    unit: float
    rate: Fraction


class ClipFormat(NamedTuple):
    """How one kind of clip is written: the end of its name, what a result becomes in it, and for docs/video.md."""

    suffix: str
    image: Callable[[DepthResult, ClipFacts], Pixels]
    content: str


def _depth_image(result: DepthResult, facts: ClipFacts) -> Pixels:
    """(H, W) uint16, 0 for no value."""
    units = np.rint(result.depth / np.float32(facts.unit)).clip(1, _LARGEST)
    return np.where(_has_value(result), np.nan_to_num(units), 0).astype(np.uint16)


def _has_value(result: DepthResult) -> npt.NDArray[np.bool_]:
    return result.valid & np.isfinite(result.depth) & (result.depth > 0)


def color_image(result: DepthResult, facts: ClipFacts) -> Pixels:
    """(H', W', 3) uint8 with the legend of the clip."""
    colors = facts.colors
    if result.scale_kind == "disparity":
        colors = replace(colors, colormap=reversed_colormap(colors.colormap))
    return color_with_legend(result.depth, result.valid, colors, "m" if result.scale_kind == "metric" else "")


def side_by_side(result: DepthResult, facts: ClipFacts) -> Pixels:
    """The frame and, at its right, its colors."""
    assert result.image is not None
    colors, image = color_image(result, facts), result.image
    factor = colors.shape[0] // image.shape[0]
    return np.concatenate((image.repeat(factor, 0).repeat(factor, 1), colors), axis=1)


CLIP_FORMATS = {
    "depth-video": ClipFormat(
        "_depth.mkv",
        _depth_image,
        "lossless 16-bit gray (FFV1 in Matroska), one unit for the whole clip, stated in its comment: "
        "`langdepth.prediction.video.writing.read_depth_video` gives back times and metres",
    ),
    "color-video": ClipFormat(
        "_color.mp4", color_image, "colors with a legend in metres, one range for the whole clip (H.264)"
    ),
    "side-by-side": ClipFormat("_side.mp4", side_by_side, "the frames and their colors side by side (H.264)"),
}


class ClipFile:
    """A clip in the making, under a hidden name beside its own. Raises LangdepthError where it cannot be written."""

    def __init__(self, path: Path, kind: str, facts: ClipFacts) -> None:
        self.path, self.kept = path, path
        self._kind, self._facts, self._temporary = kind, facts, temporary_path(path)
        self._container: Any = None
        self._stream: Any = None
        self._start, self._last = 0.0, -1

    def add(self, result: DepthResult, time: float) -> None:
        """The next frame; the first one's ``time`` (seconds) becomes 0."""
        import av

        image = CLIP_FORMATS[self._kind].image(result, self._facts)
        if self._kind == "depth-video":
            frame = av.VideoFrame.from_ndarray(image, format="gray16le")
        else:
            frame = _as_video(_even(image))
        with self._writing():
            if self._container is None:
                self._start = time
                self._open(frame.width, frame.height, result)
            self._last = max(self._last + 1, round((time - self._start) * _TICKS))
            frame.pts, frame.time_base = self._last, Fraction(1, _TICKS)
            self._container.mux(self._stream.encode(frame))

    def _open(self, width: int, height: int, result: DepthResult) -> None:
        import av

        self.path.parent.mkdir(parents=True, exist_ok=True)
        depth = self._kind == "depth-video"
        h264 = "libx264" in av.codecs_available
        self._container = av.open(
            f"file:{self._temporary}", "w", format="matroska" if depth else "mp4", options={} if depth else _PIECES
        )
        facts = {"unit": result.unit, "scale_kind": result.scale_kind, "system": result.system}
        more = {"scale": self._facts.unit, "no_value": 0} if depth else {}
        self._container.metadata["comment"] = f"{OWN}{self._kind} {json.dumps({**more, **facts})}"
        codec, settings = ("ffv1", {"level": "3"}) if depth else ("libx264", _H264) if h264 else ("mpeg4", _MPEG4)
        stream = self._container.add_stream(codec, rate=self._facts.rate, options=settings)
        stream.width, stream.height, stream.pix_fmt = width, height, "gray16le" if depth else "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, _TICKS)
        if not depth:
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = _LIMITED
        self._stream = stream

    def finish(self) -> None:
        """It is complete and gets its name; without a frame there is none."""
        if self._container is None:
            return
        with self._writing():
            self._container.mux(self._stream.encode())
            self._container.close()
            os.replace(self._temporary, self.path)
            _cut_name(self.path).unlink(missing_ok=True)

    def cut(self) -> None:
        """It was interrupted; what is there is kept beside an older, whole one, and can be played."""
        self.kept = _cut_name(self.path)
        if self._container is None:
            return
        with suppress(Exception):  # whatever does not fit any more
            self._container.mux(self._stream.encode())
        with suppress(Exception):
            self._container.close()
        with suppress(OSError):
            os.replace(self._temporary, self.kept)

    @property
    def begun(self) -> bool:
        """Whether it has a frame."""
        return self._container is not None

    def _writing(self) -> Any:
        return _explained(self.path)


def _cut_name(path: Path) -> Path:
    return path.with_name(f"{path.stem}{CUT}{path.suffix}")


class _explained:
    """What FFmpeg says about a file that is written, as one line that names it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, LangdepthError) or not isinstance(error, Exception):
            return
        reason = getattr(error, "strerror", None) or first_line(error)
        raise LangdepthError(f"{self.path}: cannot be written ({reason})") from error


def _even(pixels: Pixels) -> Pixels:
    """With even sides, which H.264 wants: the last row and column once more where they are odd."""
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _as_video(pixels: Pixels) -> Any:
    """Bytes of RGB as what players expect: BT.709, limited range, half the colors."""
    import av

    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    return frame.reformat(format="yuv420p", dst_colorspace=_BT709, dst_color_range=_LIMITED)


def read_depth_video(path: str | Path) -> Iterator[tuple[float, npt.NDArray[np.float32]]]:
    """Time in seconds and depth (H, W), 0 for no value, of each frame of a clip saved as depth-video.

    Depth is in the unit that the file states: metres for metric depth. Raises LangdepthError for any other file.
    """
    import av

    try:
        with av.open(f"file:{real_path(path)}", format="matroska", options={"protocol_whitelist": "file"}) as container:
            comment = container.metadata.get("COMMENT", container.metadata.get("comment", ""))
            if not comment.startswith(f"{OWN}depth-video "):
                raise ImageError("was not saved as depth-video")
            scale = float(json.loads(comment.removeprefix(f"{OWN}depth-video "))["scale"])
            for frame in container.decode(video=0):
                yield float(frame.time), frame.to_ndarray(format="gray16le").astype(np.float32) * np.float32(scale)
    except (av.FFmpegError, OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error) if isinstance(error, LangdepthError) else "missing or damaged"
        raise ImageError(f"{path}: {reason}") from None
