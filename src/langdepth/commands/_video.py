"""Options of ``langdepth predict`` that clips share with images. Imports neither NumPy nor PyAV."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from langdepth.commands._parse import require_use
from langdepth.commands._progress import complain, say
from langdepth.commands._results import DEFAULT_FORMATS, Known, ResultOptions
from langdepth.errors import UsageError
from langdepth.prediction.options import COLORED, read_formats
from langdepth.prediction.video.sources import ClipOptions

if TYPE_CHECKING:
    from langdepth.systems.contract import Predicts

DEFAULT_CLIPS = ("depth-video", "color-video")


@dataclass(frozen=True, kw_only=True)
class PredictOutput(ResultOptions):
    """Which files are written of each image and each video.

    Args:
        show: Of videos and cameras: a window with the running depth; without --save nothing is written then.
    """

    show: bool = False

    def __post_init__(self) -> None:
        self.require_values()  # what has a use is known with the system and with what is predicted

    @cached_property
    def _named(self) -> tuple[str, ...]:
        from langdepth.prediction.results import WRITERS
        from langdepth.prediction.video.writing import CLIP_FORMATS

        return () if self.save is None else read_formats(self.save, {**WRITERS, **CLIP_FORMATS})

    @cached_property
    def formats(self) -> tuple[str, ...]:
        """Of an image."""
        from langdepth.prediction.results import WRITERS

        return DEFAULT_FORMATS if self.save is None else tuple(name for name in self._named if name in WRITERS)

    @property
    def frame_formats(self) -> tuple[str, ...]:
        """Of each frame of a video."""
        return () if self.save is None else self.formats

    @property
    def clip_formats(self) -> tuple[str, ...]:
        """Of a whole video."""
        if self.save is None:
            return () if self.show else DEFAULT_CLIPS
        return tuple(name for name in self._named if name not in self.formats)

    @property
    def in_units(self) -> tuple[str, ...]:
        """Those formats of a video whose depth has the unit of ``depth_unit``."""
        return tuple(name for name in (*self.frame_formats, *self.clip_formats) if name in ("depth16", "depth-video"))

    def require_fit(self, system: Predicts, formats: Iterable[str], *, words: bool) -> None:
        """Raise UsageError for a camera that this system has no use for, and for formats that do not hold its depth.

        ``words``: whether they bring relative depth into metres.
        """
        from langdepth.prediction.network import usual_focal
        from langdepth.prediction.results import require_kind

        if usual_focal(system) is None:
            self.require_camera_use(f" with '{system.name}'")
        if not words:
            require_kind(formats, system.name, system.scale_kind)

    def say_cameras(
        self, cameras: Mapping[Known, int], *, keep_distortion: bool, metres: bool, thing: str = "image"
    ) -> None:
        """Print which cameras were used, where files or ``metres`` depend on them; a guess is a complaint."""
        if cameras and (self.with_camera or self.camera or metres):
            straightened = self.bends and not keep_distortion
            line = self.camera_line(cameras, thing=thing, straightened=straightened, metres=metres)
            (complain if any(known.source == "guess" for known in cameras) else say)(line)

    @property
    def colored(self) -> bool:
        """Whether something of a video has the colors of its depth."""
        written = {*self.frame_formats, *self.clip_formats}
        return self.show or not written.isdisjoint((*COLORED, "color-video", "side-by-side"))


def require_of_clips(
    clips: list[str], images: list[str], chosen: ClipOptions, output: PredictOutput, overlay: Path | None
) -> None:
    """Raise UsageError for options of clips without one, for such of images beside them, and for colors of nothing."""
    require_use(bool(clips), "is of videos, and none is named", show=output.show or None, **vars(chosen))
    if (images and not output.formats) or (output.save and output.clip_formats and not clips):
        only = ",".join(output.clip_formats)
        raise UsageError(f"--save {only} is of videos; of images name depth16, color, npy ...")
    if clips and overlay is not None:
        raise UsageError("--overlay is of images; leave it out for videos")
    colored = (images and not set(COLORED).isdisjoint(output.formats)) or (clips and output.colored)
    advice = "is of the formats color and html; name one in --save"
    require_use(bool(colored), advice, range=output.range, colormap=output.colormap)
    in_units = (images and "depth16" in output.formats) or (clips and output.in_units)
    advice = "is of depth16 and of depth-video; name one in --save"
    require_use(bool(in_units), advice, depth_unit=output.depth_unit)
