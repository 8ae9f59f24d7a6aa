"""Options of the commands that write depth to files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langdepth.camera import Camera, parse_intrinsics
from langdepth.commands._parse import require_use
from langdepth.errors import LangdepthError, UsageError
from langdepth.prediction.options import ColorScale, read_formats, writer_options

if TYPE_CHECKING:
    from langdepth.prediction.results import DepthResult


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
            metres x 256), npy, npz, color (PNG with a legend), ply.
        intrinsics: Camera as fx,fy,cx,cy in pixels of the depth maps, for ply and npz; otherwise EXIF or a guess is
            used.
        fov: Camera as the field of view across the width, in degrees.

    Raises:
        UsageError: For values that make no sense, and a camera that no format holds.
    """

    save: str = "depth16,color"
    intrinsics: str | None = None
    fov: float | None = None

    def __post_init__(self) -> None:
        used = not {"ply", "npz"}.isdisjoint(self.formats)
        if self.colors and self.camera:  # which refuse wrong values
            require_use(used, "is for ply and npz; name one in --save", intrinsics=self.intrinsics, fov=self.fov)

    @cached_property
    def formats(self) -> tuple[str, ...]:
        """Keys of ``WRITERS``."""
        from langdepth.prediction.results import WRITERS

        return read_formats(self.save, WRITERS)

    @cached_property
    def suffixes(self) -> dict[str, str]:
        """The end of the file names of each format."""
        from langdepth.prediction.results import WRITERS

        return {name: WRITERS[name].suffix for name in self.formats}

    @cached_property
    def camera(self) -> Callable[[int, int], Camera] | None:
        """What makes a camera of (width, height), or None. A wrong one is known before any work."""
        if self.intrinsics is not None and self.fov is not None:
            raise UsageError("--intrinsics and --fov both describe the camera; give one of them")
        if self.intrinsics is not None:
            fx, fy, cx, cy = parse_intrinsics(self.intrinsics)
            Camera(fx=fx, fy=fy, cx=cx, cy=cy, width=1, height=1)  # the rest depends on the image
            return partial(Camera.from_intrinsics_text, self.intrinsics)
        if self.fov is not None:
            Camera.from_fov(self.fov, 640, 480)
            return partial(Camera.from_fov, self.fov)
        return None

    def write(self, result: Any, files: dict[str, Any]) -> None:
        """Write a result to the file of each format. Raises LangdepthError."""
        from langdepth.prediction.results import write_result

        for name, path in files.items():
            write_result(result, path, format=name, **writer_options(name, self.colors))


def make_folder(out: Path) -> None:
    """Make the folder of the results. Raises LangdepthError where it cannot be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LangdepthError(f"{out}: cannot be written ({error.strerror}); give another folder with --out") from None


def result_line(source: str, targets: Mapping[str, Path], result: DepthResult) -> str:
    """What is printed of a result whose files are there."""
    import numpy as np

    depth = result.depth[result.valid]
    unit = "m" if result.scale_kind == "metric" else "(relative)"
    what = "disparity" if result.scale_kind == "disparity" else "depth"
    line = f"{source} -> {', '.join(map(str, targets.values()))}; "
    if depth.size:
        line += f"{what} {depth.min():.2f} / {np.median(depth):.2f} / {depth.max():.2f} {unit} (min / median / max)"
    else:
        line += f"no pixel has {what}"
    if result.std is not None:
        line += f"; standard deviation {np.median(result.std):.2f} {unit} (median)"
    if result.scene_probs:
        scene, probability = max(result.scene_probs.items(), key=lambda item: item[1])
        line += f"; scene {scene} {probability:.0%}"
    return line
