"""Options of the commands that write depth to files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from langdepth.camera import Camera, CameraFile, parse_intrinsics
from langdepth.commands._parse import require_use
from langdepth.errors import UsageError
from langdepth.prediction.options import ColorScale, read_formats, writer_options
from langdepth.utils.numbers import short_number

if TYPE_CHECKING:
    from langdepth.prediction.results import DepthResult, Lost

DEFAULT_FORMATS = ("depth16", "color")
_SIXTEEN_BITS = ("depth16", "kitti16", "depth-video")


@dataclass(frozen=True, kw_only=True)
class ColorOptions:
    """Which color stands for which depth.

    Args:
        range: NEAR,FAR in metres, for example 0,10: the depths that the first and the last color stand for, the same in
            every image; without it each image has its own.
        colormap: Name of a matplotlib color map; without it magma_r, near bright and far dark.
    """

    range: str | None = None
    colormap: str | None = None

    @cached_property
    def colors(self) -> ColorScale:
        """What ``range`` and ``colormap`` state. Raises UsageError."""
        return ColorScale.from_text(self.range, self.colormap)


@dataclass(frozen=True, kw_only=True)
class ResultOptions(ColorOptions):
    """Which files are written of each depth map.

    Args:
        save: What to write, with commas: depth16 (16-bit PNG, millimetres), kitti16 (the KITTI benchmark's 16-bit PNG,
            metres x 256), npy, npz, color (PNG with a legend), normals (PNG), ply (points), glb (mesh), rrd (Rerun),
            html (a page to look at it in a browser), exr, pfm; without it
            depth16,color.
        depth_unit: Metres per unit of depth16 and depth-video, the same in all files; without it 0.001, which reaches
            65.535 m.
        camera: A file with the camera: camera_info of ROS, OpenCV's YAML or JSON, cameras.txt of COLMAP, calib of
            KITTI, or a 3x3 matrix (text, .csv, .json, .npy). Without any, EXIF or a guess is used.
        intrinsics: Camera as fx,fy,cx,cy in pixels of the depth maps.
        fov: Camera as the field of view across the width, in degrees.

    Raises:
        UsageError: For values that make no sense, and a camera that no format holds.
    """

    save: str | None = None
    depth_unit: float | None = None
    camera: Path | None = None
    intrinsics: str | None = None
    fov: float | None = None

    def __post_init__(self) -> None:
        self.require_values()
        self.require_camera_use()
        self.require_unit_use()

    def require_unit_use(self) -> None:
        """Raise UsageError where no format has the unit."""
        require_use("depth16" in self.formats, "is of depth16; name it in --save", depth_unit=self.depth_unit)

    def require_values(self) -> None:
        """Raise UsageError for a unit, colors and a camera that make no sense."""
        if self.depth_unit is not None and not 1e-6 <= self.depth_unit <= 1:
            raise UsageError(f"--depth-unit: expected metres between 0.000001 and 1, got {self.depth_unit:g}")
        _ = self.colors, self.lens

    def require_camera_use(self, where: str = "", *, other: str = "") -> None:
        """Raise UsageError where no format holds the camera. ``other``: what else uses it, ``where``: in which case."""
        from langdepth.prediction.results import WRITERS

        formats = ", ".join(name for name, writer in WRITERS.items() if writer.camera)
        used, advice = bool(self.with_camera), f"is for {other}{formats}{where}; name one in --save"
        require_use(used, advice, intrinsics=self.intrinsics, fov=self.fov, camera=None if self.bends else self.camera)

    @cached_property
    def formats(self) -> tuple[str, ...]:
        """Keys of ``WRITERS``."""
        from langdepth.prediction.results import WRITERS

        return DEFAULT_FORMATS if self.save is None else read_formats(self.save, WRITERS)

    @cached_property
    def suffixes(self) -> dict[str, str]:
        """The end of the file names of each format."""
        from langdepth.prediction.results import WRITERS

        return {name: WRITERS[name].suffix for name in self.formats}

    @cached_property
    def with_camera(self) -> tuple[str, ...]:
        """Those of the formats whose files depend on the camera."""
        from langdepth.prediction.results import WRITERS

        return tuple(name for name in self.formats if WRITERS[name].camera)

    @cached_property
    def lens(self) -> Callable[[int, int], Camera] | None:
        """What makes a camera of (width, height), or None. A wrong one is known before any work."""
        given = {"--camera": self.camera, "--intrinsics": self.intrinsics, "--fov": self.fov}
        names = [name for name, value in given.items() if value is not None]
        if len(names) > 1:
            raise UsageError(f"{' and '.join(names)} both describe the camera; give one of them")
        if self.camera is not None:
            return CameraFile(self.camera)
        if self.intrinsics is not None:
            fx, fy, cx, cy = parse_intrinsics(self.intrinsics)
            Camera(fx=fx, fy=fy, cx=cx, cy=cy, width=1, height=1)  # the rest depends on the image
            return partial(Camera.from_intrinsics_text, self.intrinsics)
        if self.fov is not None:
            Camera.from_fov(self.fov, 640, 480)
            return partial(Camera.from_fov, self.fov)
        return None

    @property
    def bends(self) -> bool:
        """Whether the file of ``camera`` states a lens that is undone."""
        return isinstance(self.lens, CameraFile) and any(one.lens for one in self.lens.calibrations)

    def camera_line(
        self, cameras: Mapping[Known, int], *, thing: str = "image", straightened: bool = False, metres: bool = False
    ) -> str:
        """Which camera was used for how many things. ``metres``: whether it has a say in the depth."""
        names = {"file": f"that of {self.camera}", "user": "as given", "exif": "by EXIF"}
        counts, angles = Counter[str](), sorted({known.degrees for known in cameras if known.source == "guess"})
        for known, count in cameras.items():
            counts[known.source] += count
        taken = " to ".join(dict.fromkeys(f"{angle}" for angle in angles[:1] + angles[-1:]))
        names["guess"] = f"unknown, taken as {taken} degrees across the longer side,"
        parts = [
            f"{names.get(source, source)} for {count} {thing}{'s' * (count != 1)}"
            for source, count in sorted(counts.items())
        ]
        line = f"camera: {'; '.join(parts)}"
        if angles:
            things = "metres and the shape" if metres else "the shape"
            line += f"; give --camera, --intrinsics or --fov for {things} of things as they are"
        if straightened:
            line += "; maps are of the straightened images, with --keep-distortion of the images as they are"
        return line

    def write(self, result: Any, files: dict[str, Any]) -> None:
        """Write a result to the file of each format. Raises LangdepthError."""
        from langdepth.prediction.results import write_result

        for name, path in files.items():
            write_result(result, path, format=name, **writer_options(name, self.colors, self.depth_unit))

    def lost(self, result: DepthResult) -> dict[str, Lost]:
        """What each 16-bit format that is written does not hold of a result."""
        return lost_in(result, self.formats, self.depth_unit)


def lost_in(result: DepthResult, formats: Sequence[str], unit: float | None) -> dict[str, Lost]:
    """What those of the formats that have 16 bits do not hold of a result."""
    from langdepth.prediction.results import lost_pixels

    return {form: lost_pixels(result, form, unit) for form in _SIXTEEN_BITS if form in formats}


class Known(NamedTuple):
    """What is printed of a camera: ``Camera.source``, and degrees across the longer side."""

    source: str
    degrees: int

    @classmethod
    def of(cls, result: DepthResult) -> Known:
        """That of a result."""
        camera = result.camera or Camera.guess(*result.depth.shape[::-1])
        return cls(camera.source, round(camera.fov))


class Losses:
    """Counts what 16-bit files of a run do not hold as it is."""

    def __init__(self, thing: str = "image") -> None:
        self._thing, self._pixels, self._files = thing, Counter[tuple[str, str]](), Counter[tuple[str, str]]()

    def add(self, lost: Mapping[str, Lost]) -> None:
        """That of an image, by format."""
        for form, pixels in lost.items():
            for end, count in pixels._asdict().items():
                self._pixels[form, end] += count
                self._files[form, end] += count > 0

    @property
    def lines(self) -> list[str]:
        """One for each format and end of which something was lost."""
        ends = {
            "far": "lie beyond its reach and are stored as its farthest depth",
            "near": "are nearer than half a unit and are stored as 1 unit",
        }
        return [
            f"{form}: {count} pixels of {files} {self._thing}{'s' * (files > 1)} {ends[end]}"
            for (form, end), count in self._pixels.items()
            if (files := self._files[form, end])
        ]


def result_line(source: str, targets: Mapping[str, Path], result: DepthResult) -> str:
    """What is printed of a result whose files are there."""
    import numpy as np

    depth = result.depth[result.valid]
    unit = "m" if result.scale_kind == "metric" else "(relative)"
    what = "disparity" if result.scale_kind == "disparity" else "depth"
    line = f"{source} -> {', '.join(map(str, targets.values()))}; "
    if depth.size:
        numbers = " / ".join(map(short_number, (depth.min(), np.median(depth), depth.max())))
        line += f"{what} {numbers} {unit} (min / median / max)"
    else:
        line += f"no pixel has {what}"
    for name, spread in (("standard deviation", result.std), ("sigma", result.sigma)):
        if spread is not None and depth.size:
            line += f"; {name} {short_number(float(np.median(spread[result.valid])))} {unit} (median)"
    if result.scene_probs:
        scene, probability = max(result.scene_probs.items(), key=lambda item: item[1])
        line += f"; scene {scene} {probability:.0%}"
    if result.provenance.get("sky"):
        line += f"; sky {result.provenance['sky']:.0%}, no value"
    if "scale" in result.provenance:
        from langdepth.scaling.scale import interval_line

        line += f"; {interval_line(result)}"
    return line
