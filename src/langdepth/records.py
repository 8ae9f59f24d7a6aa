"""The records that flow through the library. Importing this module imports neither torch nor NumPy.

Conventions (see docs/architecture.md): systems get float32 RGB in [0, 1]; depth is float32 metres along the optical
axis; 0 means "no value" in files, a boolean mask says so in memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from langdepth.camera import Camera

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = [
    "Batch",
    "Camera",
    "DepthOutput",
    "Enlarge",
    "InputSpec",
    "Runtime",
    "Sample",
    "Shrink",
    "WithoutCaption",
]

WithoutCaption = Literal["stop", "neutral"]
"""What an image without caption does where others have one: stop the work, or speak as if nothing were known of it."""


Runtime = Literal["auto", "torch", "onnx", "openvino"]
"""What computes a system: "auto" takes the fastest of those that are installed and can."""


Enlarge = Literal["bilinear", "bilinear-aligned"]
"""How a depth map gets from network size to image size: pixel centres on pixel centres, or corners on corners."""

Shrink = Literal["antialiased", "bicubic", "bilinear-aligned"]
"""How an image gets to network size: averaged over the pixels that one becomes, with weights that fall linearly or are
bicubic, or sampled with corners on corners."""


MAX_NETWORK_PIXELS = 4096 * 4096
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """How a system wants its images.

    ``mean`` and ``std`` are applied inside the system. The network size is either ``size`` = (height, width), or,
    keeping the image's shape, ``area`` pixels in total; both sides become multiples of ``multiple_of``. Images
    longer than ``max_aspect`` : 1 are squeezed to that shape. ``shrink`` and ``enlarge`` say how its authors resize the
    image on the way in and the depth map on the way out; prediction, evaluation and export follow them.

    ``focal``: the relative focal length (``Camera.relative_focal``) of the camera that the network's depth is meant
    for; seen through another one, an image is as many times farther away as the other's is longer. None: the system
    does not consider cameras.
    """

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    size: tuple[int, int] | None = None
    area: int | None = None
    multiple_of: int = 32
    max_aspect: float = 4.0
    shrink: Shrink = "antialiased"
    enlarge: Enlarge = "bilinear"
    focal: float | None = None

    def __post_init__(self) -> None:
        sides = (*(self.size or ()), self.multiple_of, *(() if self.area is None else (self.area,)))
        if min(sides) < 1 or not 1 <= self.max_aspect < math.inf:
            raise ValueError("no network has this size; sides, area, multiple_of and max_aspect are 1 or more")
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise ValueError(f"colors cannot be normalized by {self.mean} and {self.std}")
        if self.focal is not None and not 0.1 <= self.focal < math.inf:
            raise ValueError(f"a focal length of {self.focal} is none of a camera")
        pixels = max(self.area or 0, math.prod(self.size or (0,)), self.multiple_of**2)
        if pixels > MAX_NETWORK_PIXELS:  # a weights file may state it
            raise ValueError(f"{pixels} pixels inside the network are more than the limit of {MAX_NETWORK_PIXELS}")

    def network_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in pixels that an image of the given size has inside the network."""
        if self.size is not None:
            return self.size
        if self.area is None:
            goal_height, goal_width = float(height), float(width)
        else:
            aspect = min(max(width / height, 1 / self.max_aspect), self.max_aspect)
            goal_height, goal_width = math.sqrt(self.area / aspect), math.sqrt(self.area * aspect)
        step = self.multiple_of
        return max(step, round(goal_height / step) * step), max(step, round(goal_width / step) * step)


@dataclass(kw_only=True)
class Sample:
    """One image with ground truth, on the CPU.

    image (3, H, W): uint8, as files hold it, or float32 in [0, 1]; depth (1, H, W) float32 metres, 0 where unknown;
    mask (1, H, W) bool, True where depth is known; scene: index into ``text.scenes.SCENES`` or -1; text: a sentence
    about the image or None; camera: intrinsics in pixels of ``image`` or None; path: where the image came from;
    key: its path in the data set's own lists.

    text_features (D,): the feature of ``text``, norm 1, zeros where nothing is known about the image. edges
    (1, H, W) bool: the true depth edges, where a data set states them and the image is to be evaluated.

    overlay (3, H, W): ``image`` with colored masks drawn over it, for systems that look at one. source_image (3, H, W)
    in [0, 1]: another view of the scene; pose (3, 4): rotation and translation (metres) that take a point from the
    camera of ``image`` to that of ``source_image``; intrinsics (3, 3): of both, in pixels of ``image``. mirrored:
    whether the training transform turned left and right round.
    """

    image: Tensor
    depth: Tensor
    mask: Tensor
    scene: int = -1
    text: str | None = None
    camera: Camera | None = None
    path: str = ""
    key: str = ""
    source: str = ""
    text_features: Tensor | None = None
    overlay: Tensor | None = None
    source_image: Tensor | None = None
    pose: Tensor | None = None
    intrinsics: Tensor | None = None
    mirrored: bool = False
    edges: Tensor | None = None


@dataclass(kw_only=True)
class Batch:
    """Samples of one size stacked: image (B, 3, H, W), depth and mask (B, 1, H, W), scene (B,) int64, -1 unknown.

    overlay, source_image (B, 3, H, W), pose (B, 3, 4), intrinsics (B, 3, 3) and text_features (B, D) are None unless
    all samples have them. mirrored (B,) bool. features, mirror_features: what ``System.frozen_features`` gives for
    ``image`` and for its mirror image, where it is known already.
    """

    image: Tensor
    depth: Tensor
    mask: Tensor
    scene: Tensor
    text: list[str | None]
    path: list[str]
    text_features: Tensor | None = None
    overlay: Tensor | None = None
    source_image: Tensor | None = None
    pose: Tensor | None = None
    intrinsics: Tensor | None = None
    mirrored: Tensor | None = None
    features: dict[str, Tensor] | None = None
    mirror_features: dict[str, Tensor] | None = None

    def to(self, device: Any) -> Batch:
        """The batch with its tensors on ``device``."""
        return self._changed(lambda value: value.to(device, non_blocking=True) if hasattr(value, "to") else value)

    def __getitem__(self, index: slice) -> Batch:
        """Some of the images, as a smaller batch."""
        return self._changed(lambda value: value[index])

    def _changed(self, change: Callable[[Any], Any]) -> Batch:
        """With ``change`` done to every value that is there."""
        changed: dict[str, Any] = {
            name: {key: change(part) for key, part in value.items()} if isinstance(value, dict) else change(value)
            for name, value in vars(self).items()
            if value is not None
        }
        return replace(self, **changed)


@dataclass(kw_only=True)
class DepthOutput:
    """What a system's ``forward`` returns.

    depth (B, 1, h, w) float32 metres (h, w may be smaller than the input: the caller resizes); relative (B, 1, h, w) in
    [0, 1]; scale (B,) metres; bin_centers (B, N); bin_probs (B, N, h, w); scene_probs (B, K); std (B, 1, h, w) metres.

    sigma (B, 1, h, w) metres: the true depth lies within depth - sigma and depth + sigma in 67 % of all pixels, within
    three times as much in 95 %.
    """

    depth: Tensor
    relative: Tensor | None = None
    scale: Tensor | None = None
    bin_centers: Tensor | None = None
    bin_probs: Tensor | None = None
    scene_probs: Tensor | None = None
    std: Tensor | None = None
    sigma: Tensor | None = None
