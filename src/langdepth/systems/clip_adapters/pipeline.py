"""How the CLIP adapters cut, turn and color an NYU Depth v2 image (pinying567, 2023; docs/systems/clip-adapters.md).

Data flow: decoded arrays of 480 x 640 and the random draws -> (mirror) -> rotation -> crop -> (mirror, color) ->
Sample of 416 x 544. Images stay in [0, 1]: normalising them is the system's part.

Corrected by default; ``reference_exact`` gives what the published program returns: its "dense" target is the raw depth,
color is not limited to 1, the self-supervised overlay is normalised like a photo, and the pose shifts the wrong way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from langdepth.errors import ImageError, UsageError
from langdepth.records import InputSpec, Sample
from langdepth.systems.clip_adapters.view_warp import in_plane_motion

STORED = (480, 640)  # height, width of the images of NYU
SIZE = (416, 544)  # height, width of the result
TEST_CORNER = (60, 56)  # x, y
TRAIN_CORNER = (43, 45)  # of the 427 x 565 pixels that training images are cut from
CENTRAL = (10, 6)  # x, y of their centre
MAX_DEPTH = 10.0  # metres
FOCAL = 0.015  # pixels, as published; any value moves pixels alike, since the motion stays in the image plane


@dataclass(frozen=True, kw_only=True)
class NyuImage:
    """Decoded arrays of one image, (480, 640).

    rgb (H, W, 3) uint8; depth_mm (H, W): raw depth in millimetres, 0 where unknown; dense_mm: the same with holes
    filled; overlay (h, w, 3) uint8 of any size: the image with colored masks. Raises ImageError for another size.
    """

    rgb: npt.NDArray[np.uint8]
    depth_mm: npt.NDArray[np.integer]
    dense_mm: npt.NDArray[np.integer] | None = None
    overlay: npt.NDArray[np.uint8] | None = None
    path: str = ""

    def __post_init__(self) -> None:
        for name, array in (("image", self.rgb), ("depth", self.depth_mm), ("filled depth", self.dense_mm)):
            if array is not None and array.shape[:2] != STORED:
                height, width = array.shape[:2]
                raise ImageError(
                    f"{self.path or 'NYU image'}: {name} is {width}x{height}, these crops need 640x480 or its shape"
                )


@dataclass(frozen=True, kw_only=True)
class SupervisedDraws:
    """What is random in a supervised training image.

    angle in degrees, counter-clockwise; x, y: place of the 416 x 544 crop in the 427 x 565 one; gain, overlay_gain:
    factors on the colors of the photo and of the overlay.
    """

    angle: float = 0.0
    x: int = 10
    y: int = 5
    mirror: bool = False
    gain: float = 1.0
    overlay_gain: float = 1.0

    @classmethod
    def draw(cls, random: np.random.Generator) -> SupervisedDraws:
        """The published distributions."""
        return cls(
            angle=random.uniform(-2.5, 2.5),
            x=int(random.integers(0, 21)),
            y=int(random.integers(0, 11)),
            mirror=random.uniform() > 0.5,
            gain=random.uniform(0.8, 1.2),
            overlay_gain=random.uniform(0.8, 1.2),
        )


@dataclass(frozen=True, kw_only=True)
class SelfSupervisedDraws:
    """What is random in a self-supervised training image.

    angle in degrees, counter-clockwise; shift_x, shift_y: how far the crop moves to the right and down, pixels.
    """

    mirror: bool = False
    shift_x: float = 0.0
    shift_y: float = 0.0
    angle: float = 0.0

    @classmethod
    def draw(cls, random: np.random.Generator) -> SelfSupervisedDraws:
        """The published distributions."""
        shift_x, shift_y = random.uniform(-10, 10, 2).tolist()
        return cls(mirror=random.uniform() > 0.5, shift_x=shift_x, shift_y=shift_y, angle=random.uniform(-10, 10))


def evaluation_sample(image: NyuImage, *, dense: bool = False) -> Sample:
    """The image as it is evaluated; ``dense`` gives the filled depth instead of the raw one."""
    return _sample(_crop(_layers(image, dense), TEST_CORNER), image)


def supervised_sample(image: NyuImage, draws: SupervisedDraws, *, reference_exact: bool = False) -> Sample:
    """A training image with depth; the filled depth if there is one."""
    layers = _rotate(_layers(image, dense=not reference_exact), draws.angle)
    layers = _crop(layers, (TRAIN_CORNER[0] + draws.x, TRAIN_CORNER[1] + draws.y))
    if draws.mirror:
        layers = _mirror(layers)
    sample = _sample(layers, image)
    largest = 255.0 if reference_exact else 1.0  # colors are in [0, 1], the published limit is that of bytes
    sample.image = (sample.image * draws.gain).clamp(0, largest)
    if sample.overlay is not None:
        sample.overlay = (sample.overlay * draws.overlay_gain).clamp(0, largest)
    return sample


def self_supervised_sample(image: NyuImage, draws: SelfSupervisedDraws, *, reference_exact: bool = False) -> Sample:
    """A rotated and shifted image, the original as its source view, and the pose between the two.

    The pose moves pixels at a depth of 1 m by exactly this rotation and shift; see ``view_warp.in_plane_motion``.
    """
    layers = _layers(image, dense=not reference_exact)
    if draws.mirror:
        layers = _mirror(layers)
    left, top = TRAIN_CORNER[0] + CENTRAL[0], TRAIN_CORNER[1] + CENTRAL[1]
    shift = round(draws.shift_x), round(draws.shift_y)
    sample = _sample(_crop(_rotate(layers, draws.angle), (left + shift[0], top + shift[1])), image)
    sample.source_image = _sample(_crop(layers, (left, top)), image).image
    intrinsics = np.array([[FOCAL, 0, SIZE[1] / 2], [0, FOCAL, SIZE[0] / 2], [0, 0, 1]])
    if reference_exact:
        pose = in_plane_motion(draws.angle, (-draws.shift_x, -draws.shift_y), (320, 240), intrinsics)
        if sample.overlay is not None:
            spec = InputSpec()
            mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
            sample.overlay = (sample.overlay - mean) / std
    else:  # Pillow turns about the middle of the image, which lies between pixel centres
        pose = in_plane_motion(draws.angle, shift, (319.5 - left, 239.5 - top), intrinsics)
    sample.pose = torch.from_numpy(pose).float()
    sample.intrinsics = torch.from_numpy(intrinsics).float()
    return sample


class NyuAdapterTransform:
    """Rotates, cuts and recolors 640x480 images to 544x416 as the CLIP adapters do.

    Draws follow torch's global generator.

    ``sizes``: (height, width) that the network takes; UsageError unless they are (416, 544). ``two_views``: as for
    self-supervised training, with a second view; otherwise as for supervised training.
    """

    def __init__(
        self, sizes: Sequence[tuple[int, int]] = (SIZE,), *, two_views: bool = False, reference_exact: bool = False
    ) -> None:
        others = [f"{width}x{height}" for height, width in sizes if (height, width) != SIZE]
        if others:
            raise UsageError(
                f"data.pipeline: the images of the CLIP adapters are {SIZE[1]}x{SIZE[0]}, but the network takes "
                f"{', '.join(others)}; change data.aspects or the size in system.options, or take the standard pipeline"
            )
        self.two_views = two_views
        self.reference_exact = reference_exact

    def __call__(self, sample: Sample, size: tuple[int, int] = SIZE) -> Sample:
        """``sample`` in [0, 1] or in bytes; depth counts in whole millimetres.

        Images of another size with the shape of 640x480 are resized to it first, depth by its nearest pixel. ``size``
        is (416, 544) and changes nothing. Raises ImageError for another shape.
        """
        depth_mm = (sample.depth[0] * 1000).round().clamp(max=1000 * MAX_DEPTH).numpy().astype(np.uint16)
        rgb = _bytes(sample.image)
        height, width = depth_mm.shape
        if (height, width) != STORED and height * STORED[1] == width * STORED[0]:
            rgb = np.asarray(Image.fromarray(rgb).resize(STORED[::-1], Image.Resampling.BILINEAR))
            depth_mm = np.asarray(Image.fromarray(depth_mm).resize(STORED[::-1], Image.Resampling.NEAREST))
        overlay = None if sample.overlay is None else _bytes(sample.overlay)
        image = NyuImage(rgb=rgb, depth_mm=depth_mm, overlay=overlay, path=sample.path)
        random = np.random.default_rng(int(torch.randint(2**62, ())))
        if self.two_views:
            views = SelfSupervisedDraws.draw(random)
            made = self_supervised_sample(image, views, reference_exact=self.reference_exact)
        else:
            draws = SupervisedDraws.draw(random)
            made = supervised_sample(image, draws, reference_exact=self.reference_exact)
        words = sample.text_features
        return replace(made, scene=sample.scene, text=sample.text, text_features=words, source=sample.source)


def two_views(sizes: Sequence[tuple[int, int]] = (SIZE,), *, reference_exact: bool = False) -> NyuAdapterTransform:
    """Rotates and shifts such images, and adds the unrotated one with the pose, which a photometric loss needs."""
    return NyuAdapterTransform(sizes, two_views=True, reference_exact=reference_exact)


# Photo, depth and overlay are Pillow images of one size, moved alike.


def _layers(image: NyuImage, dense: bool) -> dict[str, Image.Image]:
    depth = image.dense_mm if dense and image.dense_mm is not None else image.depth_mm
    # 16 bits as in the files: Pillow turns other kinds of numbers with other rounding.
    layers = {"image": Image.fromarray(image.rgb), "depth": Image.fromarray(depth.astype(np.uint16))}
    if image.overlay is not None:
        layers["overlay"] = Image.fromarray(image.overlay).resize(layers["image"].size)  # bicubic
    return layers


def _crop(layers: dict[str, Image.Image], corner: tuple[int, int]) -> dict[str, Image.Image]:
    """416 x 544 with its top left pixel at ``corner`` = (x, y)."""
    box = (*corner, corner[0] + SIZE[1], corner[1] + SIZE[0])
    return {name: layer.crop(box) for name, layer in layers.items()}


def _mirror(layers: dict[str, Image.Image]) -> dict[str, Image.Image]:
    return {name: layer.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for name, layer in layers.items()}


def _rotate(layers: dict[str, Image.Image], angle: float) -> dict[str, Image.Image]:
    """Counter-clockwise about the middle, zeros outside; only the photo is interpolated."""
    rules = {"image": Image.Resampling.BILINEAR}
    return {name: layer.rotate(angle, rules.get(name, Image.Resampling.NEAREST)) for name, layer in layers.items()}


def _sample(layers: dict[str, Image.Image], image: NyuImage) -> Sample:
    millimetres = np.array(layers["depth"], dtype=np.float32)
    depth = torch.from_numpy(millimetres)[None].div(1000).clamp(0, MAX_DEPTH)
    overlay = _colors(layers["overlay"]) if "overlay" in layers else None
    return Sample(image=_colors(layers["image"]), depth=depth, mask=depth > 0, overlay=overlay, path=image.path)


def _colors(layer: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(layer)).permute(2, 0, 1).float() / 255


def _bytes(colors: Tensor) -> npt.NDArray[np.uint8]:
    """(3, H, W) in [0, 1] or in bytes to (H, W, 3)."""
    if colors.is_floating_point():
        colors = colors.mul(255).round().byte()
    return colors.permute(1, 2, 0).contiguous().numpy()
