"""Cameras: intrinsics and lens, where they come from, and points in space."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from langdepth.errors import FileWarning, UsageError
from langdepth.lenses import Lens, Straightening
from langdepth.utils.arguments import check_fields, checked
from langdepth.utils.camera_files import Calibration, read_calibrations
from langdepth.utils.exif import focal_35mm, focal_plane, is_cut
from langdepth.utils.numbers import plain_number

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    _Value = TypeVar("_Value", bound=np.generic)

GUESSED_FOV_DEGREES = 60.0  # across the longer side: between an RGB-D sensor (58) and a phone's main camera (66)

_CREDIBLE_FOV_DEGREES = (2.0, 150.0)
_NEAR_THE_MIDDLE = (0.3, 0.7)  # of a side; half or twice the size would move 0.5 to 0.25 or 1

# EXIF orientation: (swap x and y, then mirror x, then mirror y) turns the stored image upright.
_ORIENTATIONS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}


@dataclass(frozen=True, kw_only=True)
class Camera:
    """Intrinsics in pixels of a (height, width) image; (0, 0) is the centre of the top left pixel.

    ``source`` says who stated them: "user", "file", "exif", "data set" or "guess". ``lens``: what bends the image, None
    for a pinhole. Points in space are metres in the camera's frame: x to the right, y down, z forward along the optical
    axis. Raises UsageError for a focal length or size that is not positive and finite, or a principal point that is not
    finite.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int
    source: str = "user"
    lens: Lens | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.width < 1 or self.height < 1:
            raise UsageError(f"camera: the image size must be positive, got {self.width}x{self.height}")
        if not all(math.isfinite(f) and f > 0 for f in (self.fx, self.fy)):
            raise UsageError(f"camera: focal lengths must be positive pixels, got fx={self.fx}, fy={self.fy}")
        if not all(math.isfinite(c) for c in (self.cx, self.cy)):
            raise UsageError(f"camera: the principal point must be finite pixels, got cx={self.cx}, cy={self.cy}")

    @classmethod
    @checked
    def from_focal(cls, focal: float, width: int, height: int, source: str = "user") -> Camera:
        """Square pixels of focal length ``focal`` (pixels), principal point in the middle of the image."""
        return cls(
            fx=focal, fy=focal, cx=(width - 1) / 2, cy=(height - 1) / 2, width=width, height=height, source=source
        )

    @classmethod
    @checked
    def from_fov(cls, fov_degrees: float, width: int, height: int, source: str = "user") -> Camera:
        """Square pixels and ``fov_degrees`` across the width, from the left edge to the right edge of the image.

        Raises UsageError for an angle that no pinhole camera has, see ``require_credible``.
        """
        low, high = _CREDIBLE_FOV_DEGREES
        if not low <= fov_degrees <= high:
            raise UsageError(f"field of view must lie between {low:g} and {high:g} degrees, got {fov_degrees:g}")
        return cls.from_focal(width / 2 / math.tan(math.radians(fov_degrees) / 2), width, height, source)

    @classmethod
    def from_intrinsics(
        cls, fx: float, fy: float, cx: float, cy: float, width: int, height: int, source: str = "user"
    ) -> Camera:
        """Intrinsics that somebody states, in pixels of a (height, width) image.

        Raises UsageError for intrinsics that cannot be, see ``require_credible``.
        """
        camera = cls(fx=fx, fy=fy, cx=cx, cy=cy, width=width, height=height, source=source)
        camera.require_credible()
        return camera

    def require_credible(self) -> None:
        """Raise UsageError for what ``Camera`` can hold, but no camera of this image has.

        That is a principal point outside the image (the sign of intrinsics that belong to another size) and a field of
        view that no pinhole camera has (of a focal length in millimetres, or of numbers in another order).
        """
        fx, fy, cx, cy, width, height = self.fx, self.fy, self.cx, self.cy, self.width, self.height
        stated = f"intrinsics {fx:g},{fy:g},{cx:g},{cy:g}"
        if not (-0.5 <= cx <= width - 0.5 and -0.5 <= cy <= height - 0.5):
            raise UsageError(
                f"{stated}: the principal point lies outside the {width}x{height} image; "
                "give intrinsics in pixels of this image"
            )
        for side, focal, name in ((width, fx, "fx"), (height, fy, "fy")):
            fov = math.degrees(2 * math.atan(side / 2 / focal))
            if not _CREDIBLE_FOV_DEGREES[0] <= fov <= _CREDIBLE_FOV_DEGREES[1]:
                raise UsageError(
                    f"{stated}: {name} is a field of view of {fov:.3g} degrees across the {width}x{height} image; "
                    "give fx,fy,cx,cy in pixels of this image"
                )

    @classmethod
    @checked
    def from_intrinsics_text(cls, text: str, width: int, height: int) -> Camera:
        """Intrinsics as a user types them, "fx,fy,cx,cy" in pixels of a (height, width) image.

        Raises UsageError for anything but four numbers, and for intrinsics that cannot be, see ``from_intrinsics``.
        """
        fx, fy, cx, cy = parse_intrinsics(text)
        camera = cls.from_intrinsics(fx, fy, cx, cy, width, height)
        warn_if_off_center(camera, "--intrinsics")
        return camera

    @classmethod
    @checked
    def from_file(cls, path: str | Path, width: int | None = None, height: int | None = None) -> Camera:
        """The camera of a calibration file, ``source`` "file": see ``utils.camera_files.read_calibrations``.

        For an image of (height, width), to which it is scaled; without them of the size that the file states. Raises
        UsageError for a file that cannot be used, and one of a camera whose images have another shape.
        """
        file = CameraFile(path)
        if width is None or height is None:
            only = file.calibrations[0]
            if len(file.calibrations) > 1 or only.width is None or only.height is None:
                raise UsageError(f"{path}: states no size, or several cameras; give width and height of the image")
            width, height = only.width, only.height
        return file(width, height)

    @classmethod
    @checked
    def from_exif(cls, exif: Mapping[int, Any], width: int, height: int) -> Camera | None:
        """What the photo's own EXIF tags say, or None when they say nothing credible.

        ``exif``: the tags of the Exif block (``image.getexif().get_ifd(0x8769)`` in Pillow); ``width`` and ``height``
        of the image as it is, stored or turned upright. The 35 mm equivalent is taken over the diagonal, as CIPA
        defines it; else the focal length in millimetres times the sensor's pixels per millimetre. Both hold for the
        whole photo: of a part of one (``is_cut``) they say nothing.
        """
        focal = focal_35mm(exif, width, height) or focal_plane(exif, width, height)
        if not focal or is_cut(exif, width, height):
            return None
        fov = math.degrees(2 * math.atan(max(width, height) / 2 / focal))
        low, high = _CREDIBLE_FOV_DEGREES
        return cls.from_focal(focal, width, height, source="exif") if low <= fov <= high else None

    @classmethod
    @checked
    def guess(cls, width: int, height: int, relative_focal: float | None = None) -> Camera:
        """When nobody states a camera, ``source`` "guess": the one that a system's depth is meant for.

        ``relative_focal``: its ``InputSpec.focal``; of systems without one it is ``GUESSED_FOV_DEGREES`` across the
        longer side.
        """
        if relative_focal is None:
            focal = max(width, height) / 2 / math.tan(math.radians(GUESSED_FOV_DEGREES) / 2)
        else:
            focal = relative_focal * math.sqrt(width * height)
        return cls.from_focal(focal, width, height, source="guess")

    @property
    def relative_focal(self) -> float:
        """The focal length as a share of the square root of the image's area, which resizing does not change."""
        return math.sqrt(self.fx * self.fy / (self.width * self.height))

    @property
    def fov(self) -> float:
        """Degrees across the longer side, of a pinhole."""
        side, focal = max((self.width, self.fx), (self.height, self.fy))
        return math.degrees(2 * math.atan(side / 2 / focal))

    @property
    def matrix(self) -> npt.NDArray[np.float64]:
        """(3, 3) matrix K: pixel (u, v, 1) ~ K @ point (x, y, z)."""
        import numpy as np

        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]], dtype=np.float64)

    @checked
    def scaled(self, width: int, height: int) -> Camera:
        """The camera of the same image resized to (height, width)."""
        sx, sy = width / self.width, height / self.height
        return replace(
            self,
            fx=self.fx * sx,
            fy=self.fy * sy,
            cx=(self.cx + 0.5) * sx - 0.5,  # edges scale, centres of pixels lie half a pixel inside
            cy=(self.cy + 0.5) * sy - 0.5,
            width=width,
            height=height,
            lens=self.lens and self.lens.scaled(sx, sy),
        )

    @checked
    def fitted(self, width: int, height: int) -> Camera:
        """The camera for an image of (height, width), scaled where that is the same image in another size.

        Raises UsageError for an image of another shape, and for intrinsics that cannot be, see ``require_credible``.
        """
        self.require_credible()
        if abs(self.height * width / self.width - height) > 1:
            raise UsageError(f"the camera is for {self.width}x{self.height} pixels, the image is {width}x{height}")
        return self if (self.width, self.height) == (width, height) else self.scaled(width, height)

    @checked
    def straightening(self, *, whole: bool = False) -> Straightening | None:
        """The way to the image of a pinhole of the same size and back; None for a camera that is one.

        ``whole``: the straightened image shows all of this one, as far as it can; else it has the focal lengths that
        the lens states for it, or those of the camera.
        """
        if self.lens is None:
            return None
        own = (self.fx, self.fy, self.cx, self.cy)
        flat: Any = self.lens.straight or own
        way = Straightening(lens=self.lens, camera=own, flat=flat, height=self.height, width=self.width)
        return way.whole() if whole else way

    def require_view(self) -> None:
        """Raise UsageError for a lens that leaves nothing of the image; it takes a millisecond."""
        way = self.straightening()
        if way is not None:
            way.require_view()

    def straight(self, way: Straightening) -> Camera:
        """The pinhole of the straightened image."""
        fx, fy, cx, cy = way.flat
        return replace(self, fx=fx, fy=fy, cx=cx, cy=cy, lens=None)

    @checked
    def oriented(self, orientation: int) -> Camera:
        """The camera after the image was turned upright from EXIF ``orientation`` (1..8; others mean 1).

        Raises UsageError for one with a lens.
        """
        if self.lens is not None:
            raise UsageError("a camera with a lens is not turned; state that of the upright image")
        swap, mirror_x, mirror_y = _ORIENTATIONS.get(orientation, _ORIENTATIONS[1])
        fx, fy, cx, cy, width, height = self.fx, self.fy, self.cx, self.cy, self.width, self.height
        if swap:
            fx, fy, cx, cy, width, height = fy, fx, cy, cx, height, width
        cx = width - 1 - cx if mirror_x else cx
        cy = height - 1 - cy if mirror_y else cy
        return replace(self, fx=fx, fy=fy, cx=cx, cy=cy, width=width, height=height)

    def unproject(self, depth: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
        """Points (H, W, 3) float32 of a depth map (H, W), both in metres; NaN for pixels that a lens cannot reach.

        Raises UsageError when the sizes differ.
        """
        import numpy as np

        depth = _numbers(depth).astype(np.float32, copy=False)
        if depth.shape != (self.height, self.width):
            raise UsageError(f"camera is for a {self.width}x{self.height} image, depth has shape {depth.shape}")
        x, y = (np.arange(self.width) - self.cx) / self.fx, ((np.arange(self.height) - self.cy) / self.fy)[:, None]
        if self.lens is not None:
            x, y = self.lens.undistort(*np.broadcast_arrays(x, y))
            depth = np.where(np.isnan(x), np.float32(np.nan), depth)
        return np.stack((depth * x.astype(np.float32), depth * y.astype(np.float32), depth), axis=-1)

    def project(self, points: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
        """Pixels (..., 2) as (u, v) of points (..., 3) in metres; NaN for points not in front of the camera."""
        import numpy as np

        points = _numbers(points).astype(np.float64, copy=False)
        if points.shape[-1:] != (3,):
            raise UsageError(f"points in space have shape (..., 3), these {points.shape}")
        x, y, z = np.moveaxis(points, -1, 0)
        z = np.where(z > 0, z, np.nan)
        x, y = x / z, y / z
        if self.lens is not None:
            x, y = self.lens.distort(x, y)
        return np.stack((self.fx * x + self.cx, self.fy * y + self.cy), axis=-1)


class CameraFile:
    """The camera of a calibration file for images of any size: a function of (width, height).

    It is read once. Raises UsageError, naming the file, for one that cannot be used.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.calibrations = read_calibrations(self.path)
        for calibration in self.calibrations:
            try:
                self._camera(calibration, calibration.width or 1, calibration.height or 1)
            except UsageError as error:
                raise UsageError(f"{path}: {error}") from None

    def __call__(self, width: int, height: int) -> Camera:
        """The camera of an image. Raises UsageError, naming the file, where none fits."""
        fits, problem = [], "no camera"
        for calibration in self.calibrations:
            size = calibration.width or width, calibration.height or height
            try:
                fits.append((size == (width, height), self._camera(calibration, *size).fitted(width, height)))
            except UsageError as error:
                problem = str(error)
        fits = [fit for fit in fits if fit[0]] or fits
        if not fits:
            raise UsageError(f"{self.path}: {problem}")
        if len(fits) > 1:
            raise UsageError(f"{self.path}: has {len(fits)} cameras for {width}x{height} pixels; leave one in the file")
        camera = fits[0][1]
        try:
            camera.require_view()
        except UsageError as error:
            raise UsageError(f"{self.path}: {error}") from None
        if self.calibrations[0].width is None:
            warn_if_off_center(camera, self.path)
        return camera

    @staticmethod
    def _camera(calibration: Calibration, width: int, height: int) -> Camera:
        stated = {name: getattr(calibration, name) for name in ("fx", "fy", "cx", "cy", "lens")}
        return Camera(**stated, width=width, height=height, source="file")


def warn_if_off_center(camera: Camera, stated_by: object) -> None:
    """Warn where intrinsics without a size seem to be those of another size: their middle is not that of the image."""
    across, down = (camera.cx + 0.5) / camera.width, (camera.cy + 0.5) / camera.height
    if not all(_NEAR_THE_MIDDLE[0] <= place <= _NEAR_THE_MIDDLE[1] for place in (across, down)):
        note = (
            f"states no image size, and its principal point ({camera.cx:g}, {camera.cy:g}) is far from the middle of "
            f"a {camera.width}x{camera.height} image; give intrinsics in pixels of this image, or a file with its size"
        )
        warnings.warn(FileWarning(stated_by, note), stacklevel=2)


def _numbers(values: object) -> npt.NDArray[Any]:
    import numpy as np

    array = np.asarray(values)
    if array.dtype.kind not in "uif":
        raise UsageError(f"expected an array of real numbers, got {type(values).__name__} of type {array.dtype}")
    return array


def parse_intrinsics(text: str) -> tuple[float, float, float, float]:
    """The four numbers of "fx,fy,cx,cy". Raises UsageError for anything else."""
    try:
        fx, fy, cx, cy = (plain_number(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"intrinsics '{text}': expected fx,fy,cx,cy, for example 525,525,319.5,239.5") from None
    return fx, fy, cx, cy


def turned_upright(pixels: npt.NDArray[_Value], orientation: int) -> npt.NDArray[_Value]:
    """What was stored, (H, W, ...), turned as EXIF ``orientation`` says, as ``Camera.oriented`` does to a camera."""
    swap, mirror_x, mirror_y = _ORIENTATIONS.get(orientation, _ORIENTATIONS[1])
    if orientation == 1:
        return pixels
    import numpy as np

    turned = pixels.swapaxes(0, 1) if swap else pixels
    return np.ascontiguousarray(turned[:: -1 if mirror_y else 1, :: -1 if mirror_x else 1])
