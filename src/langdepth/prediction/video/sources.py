"""What is a clip: video files, numbered images, cameras, streams. Imports neither NumPy nor PyAV."""

from __future__ import annotations

import math
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from langdepth.errors import LangdepthError, UsageError
from langdepth.utils.arguments import check_fields
from langdepth.utils.image_kinds import image_kind, read_head

SteadyKind: TypeAlias = Literal["motion", "scale", "off"]
SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts")
OWN = "langdepth "  # what the comment of a clip of results begins with
KINDS = "MP4, MOV, MKV, WebM, AVI, MPEG-TS"
SEQUENCE_RATE = 25.0  # frames per second of numbered images
_WEBCAM = re.compile(r"webcam:(\d{1,3})")
_STREAMS = ("rtsp://", "rtsps://", "http://", "https://")
_NUMBER = re.compile(r"%0?(\d{0,2})d")
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")  # that MP4 and QuickTime files begin with
_DEVICES = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}"), "win32": ("dshow", "video={}")}


@dataclass(frozen=True, kw_only=True)
class ClipOptions:
    """Which frames of a clip are predicted, and how they go together.

    Args:
        start: Of a video: seconds from its beginning at which to start.
        end: Seconds from its beginning at which to end; of a camera, from when it was opened.
        fps: At most so many frames per second, the first of each step; of numbered images, how fast they follow each
            other (25 otherwise).
        steady: Of a video, against flicker: motion (one scale for the clip, and what is seen again keeps its depth; the
            default), scale (one scale alone), off (each frame on its own).

    Raises:
        UsageError: For times that make no sense.
    """

    start: float | None = None
    end: float | None = None
    fps: float | None = None
    steady: SteadyKind | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        for name, least in (("start", 0.0), ("end", 0.0), ("fps", 1e-6)):
            value = getattr(self, name)
            if value is not None and not (least <= value and math.isfinite(value)):
                raise UsageError(f"--{name}: expected a number {'above' if name == 'fps' else 'from'} 0, got {value:g}")
        if self.end is not None and self.end <= (self.start or 0.0):
            raise UsageError(f"--end {self.end:g} is not after --start {self.start or 0:g}")

    @property
    def given(self) -> dict[str, object]:
        """Those that are."""
        return {name: value for name, value in vars(self).items() if value is not None}


def is_live(source: str) -> bool:
    """Whether frames that nobody takes are gone: a camera or an RTSP stream."""
    return bool(_WEBCAM.fullmatch(source)) or source.startswith(_STREAMS[:2])


def is_stream(source: str) -> bool:
    """Whether it is fetched over a network."""
    return source.startswith(_STREAMS)


def is_pattern(source: str) -> bool:
    """Whether a name that no file has stands for numbered images."""
    return not os.path.lexists(source) and bool(_NUMBER.search(os.path.basename(source)))


def is_clip(source: str) -> bool:
    """Whether a word of a command line stands for a clip; a file does by its content, or else by its ending."""
    if is_live(source) or is_stream(source):
        return True
    if os.path.isdir(source):
        return False
    if not os.path.lexists(source):
        return is_pattern(source) or source.lower().endswith(SUFFIXES)
    head = read_head(source)
    return container(head) is not None or (image_kind(head) is None and source.lower().endswith(SUFFIXES))


def container(head: bytes) -> str | None:
    """FFmpeg's name of the kind of video that begins with these bytes; None for all others."""
    if head[4:8] in _BOXES and image_kind(head) is None:
        return "mov"
    if head.startswith(b"\x1aE\xdf\xa3"):
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    return "mpegts" if head[:1] == b"G" and head[4:5] not in (b"8", b"") and b"\xff" * 4 in head[8:] else None


def webcam(source: str) -> tuple[str, str] | None:
    """FFmpeg's (format, name) of the camera that "webcam:N" names on this machine; None for other sources.

    Raises:
        LangdepthError: There is no such camera.
    """
    found = _WEBCAM.fullmatch(source)
    if found is None:
        return None
    kind, name = _DEVICES.get(sys.platform, _DEVICES["linux"])
    name = name.format(found[1])
    if kind == "v4l2" and not os.path.exists(name):
        raise LangdepthError(f"{source}: there is no camera {name}; plug it in, or name another one")
    return kind, name


def sequence(source: str) -> list[Path]:
    """The files of numbered images that a pattern such as frames_%04d.png stands for, in order of their numbers.

    Raises:
        LangdepthError: There are none.
    """
    path = Path(source)
    number = _NUMBER.search(path.name)
    assert number is not None
    before, after = path.name[: number.start()], path.name[number.end() :]
    digits = rf"\d{{{number[1]},}}" if number[1] else r"\d+"
    name = re.compile(f"{re.escape(before)}({digits}){re.escape(after)}")
    try:
        matches = [match for file in os.listdir(path.parent) if (match := name.fullmatch(file))]
    except OSError as error:
        raise LangdepthError(f"{path.parent}: cannot be read ({error.strerror})") from None
    if not matches:
        raise LangdepthError(f"{source}: no images match")
    return [path.parent / match[0] for match in sorted(matches, key=lambda match: int(match[1]))]


def place_of(source: str) -> Path:
    """What the results of a clip are called, with an ending: clip.mp4, webcam0, the host of a stream, frames.png."""
    if is_stream(source):
        host = re.sub(r"[^\w.-]+", "_", source.partition("://")[2].rpartition("@")[2].partition("?")[0]).strip("_.")
        return Path(f"{(host or 'stream')[:100].replace('.', '_')}.stream")
    if found := _WEBCAM.fullmatch(source):
        return Path(f"webcam{found[1]}.camera")
    name = Path(source).name
    if is_pattern(source):
        stem = _NUMBER.sub("", Path(name).stem).strip("_-. ")
        return Path(f"{stem or 'frames'}{Path(name).suffix}")
    return Path(name)
