"""A batch of images through a system: to the network's size and back, mirrored, and window by window.

Training's validation, evaluation and prediction share ``infer``. Imports no torch: see ``prediction.arrays``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from langdepth.camera import Camera
from langdepth.errors import UsageError
from langdepth.evaluation.protocols import Resize
from langdepth.prediction.arrays import (
    as_float,
    as_float32,
    joined,
    mean,
    mirrored,
    resized_image,
    resized_map,
    split,
    zeros_like,
)
from langdepth.records import DepthOutput, Enlarge
from langdepth.systems.contract import Array, HasMembers, Predicts, Scene, Text

MAX_WINDOWS = 10_000


@dataclass(frozen=True, kw_only=True)
class Views:
    """What a system takes: image and overlay (B, 3, H, W), and the words about each image.

    focal (B,): relative focal lengths of their cameras (``Camera.relative_focal``), 0 where unknown.
    """

    image: Array
    text: Text = None
    scene: Scene = None
    overlay: Array | None = None
    focal: Array | None = None

    def changed(self, change: Callable[[Array], Array]) -> Views:
        """With image and overlay changed alike."""
        overlay = None if self.overlay is None else change(self.overlay)
        return replace(self, image=change(self.image), overlay=overlay)

    def times(self, count: int, system: Predicts) -> Views:
        """With words and cameras ``count`` times, for a batch that holds all images so often."""
        text = _times(self.text, count) if system.text_per_image else self.text
        return replace(self, text=text, scene=_times(self.scene, count), focal=_times(self.focal, count))

    def for_cameras(self, system: Predicts, depth: Array) -> Array:
        """The network's metres (B, 1, h, w) as those of each image's camera, see ``InputSpec.focal``."""
        canonical = system.input_spec.focal
        if canonical is None or self.focal is None:
            return depth
        factor = self.focal / canonical + (self.focal <= 0)  # 1 where the camera is not known
        return depth * factor[:, None, None, None]

    def forward(self, system: Predicts, *, flip: bool = False, limit: float | None = None) -> DepthOutput:
        """The system's output at this size, depth in float32; see ``infer``. Mirrored images are in the same batch."""
        count, views = len(self.image), self
        if flip:
            views = self.times(2, system).changed(lambda image: joined([image, mirrored(image)]))
        second = {} if views.overlay is None else {"overlay": as_float(views.overlay)}
        output: DepthOutput = system(as_float(views.image), views.text, views.scene, **second)
        depth = views.for_cameras(system, as_float32(output.depth))
        if limit is not None:
            depth = depth.clip(0, limit)
        maps = {"depth": depth}
        if output.sigma is not None:
            maps["sigma"] = views.for_cameras(system, as_float32(output.sigma))
        if not flip:
            return replace(output, **maps)
        fields = {name: value[:count] for name, value in vars(output).items() if value is not None}
        means = {name: (both[:count] + mirrored(both[count:])) / 2 for name, both in maps.items()}
        return DepthOutput(**{**fields, **means})

    def through_windows(
        self,
        system: Predicts,
        window: tuple[int, int],
        stride: tuple[int, int] | None = None,
        *,
        enlarge: Enlarge | None = None,
        flip: bool = False,
        limit: float | None = None,
    ) -> DepthOutput:
        """Depth (B, 1, H, W) by overlapping windows, see ``infer``."""
        count, size, spec = len(self.image), self.image.shape[-2:], system.input_spec
        height, width = min(window[0], size[0]), min(window[1], size[1])
        part = math.sqrt(height * width / (size[0] * size[1]))
        network_size = replace(spec, area=None).network_size(height, width)
        tops, lefts = window_starts(size, window, stride or window)
        places = [
            (..., slice(top, top + height), slice(left, left + width))
            for top in (min(top, size[0] - height) for top in tops)
            for left in (min(left, size[1] - width) for left in lefts)
        ]
        at_once = max(1, size[0] * size[1] // max(height * width, math.prod(network_size)))
        total, windows = (zeros_like(self.image, n, 1, *size) for n in (count, 1))
        scene_probs: list[Array] = []
        for some in (places[i : i + at_once] for i in range(0, len(places), at_once)):
            of_parts = self if self.focal is None else replace(self, focal=self.focal / part)
            views = of_parts.times(len(some), system).changed(
                lambda image, some=some: resized_image(  # type: ignore[misc]
                    joined([image[place] for place in some]), network_size, spec.shrink
                )
            )
            output = views.forward(system, flip=flip, limit=limit)
            depth = resized_map(output.depth, (height, width), enlarge or spec.enlarge)
            for place, found in zip(some, split(depth, count), strict=True):
                total[place] += found
                windows[place] += 1
            if output.scene_probs is not None:
                scene_probs.extend(split(output.scene_probs, count))
        return DepthOutput(depth=total / windows, scene_probs=mean(scene_probs) if scene_probs else None)


def _times(words: Any, count: int) -> Any:
    """Words of each image ``count`` times: a list, an array or None."""
    if words is None or isinstance(words, list):
        return words and words * count
    return joined([words] * count)


def infer(
    system: Predicts,
    image: Array,
    text: Text = None,
    scene: Scene = None,
    *,
    overlay: Array | None = None,
    focal: Array | None = None,
    flip: bool = False,
    resize: Resize = "system",
    limit: float | None = None,
    window: tuple[int, int] | None = None,
    stride: tuple[int, int] | None = None,
    via: tuple[int, int] | None = None,
) -> DepthOutput:
    """Depth of a batch at its own size.

    Args:
        system: Ready to predict (a torch system in eval mode).
        image: (B, 3, H, W), float32 in [0, 1] or uint8, any size. It is resized as the system's InputSpec states.
        text: As ``System.forward`` takes it.
        scene: The same.
        overlay: Like ``image``, for systems that take one (the images with masks drawn over them).
        focal: (B,) relative focal lengths of the cameras (``Camera.relative_focal``), 0 where unknown, for systems
            that consider them (``InputSpec.focal``).
        flip: Average the depth with that of the mirrored image.
        resize: How the depth gets to (B, 1, H, W): as the InputSpec states ("system"), bilinearly with pixel centres
            ("bilinear"), or with corners of the depth on those of the image ("bilinear-aligned").
        limit: Put depth into [0, limit] metres before it is averaged.
        window: Predict windows of (height, width) pixels and average them; smaller images are one window. Each is an
            image of its own to the system, as it is and not enlarged to the area of the InputSpec. As many go through
            the network at once as make up the pixels of the images.
        stride: Distance of the windows, None for side by side; the last ones are moved back to the border.
        via: The depth takes this (height, width) first.

    Raises:
        UsageError: For more than ``MAX_WINDOWS`` windows, and what the system does not take.
    """
    if isinstance(system, HasMembers):
        outputs = [
            infer(
                member,
                *(image, text, scene),
                overlay=overlay if member.takes_overlay else None,
                focal=focal,
                flip=flip,
                resize=resize,
                limit=limit,
                window=window,
                stride=stride,
                via=via,
            )
            for member in system.members
        ]
        return _mean(outputs, with_scenes=bool(system.scenes))
    views = Views(image=image, text=text, scene=scene, overlay=overlay, focal=focal)
    enlarge = _enlarge(system, resize)
    with system.inference():
        if window is not None:
            return views.through_windows(system, window, stride, enlarge=enlarge, flip=flip, limit=limit)
        output = views.changed(lambda one: to_network_size(system, one)).forward(system, flip=flip, limit=limit)
        sizes = [image.shape[-2:]] if via is None else [via, image.shape[-2:]]
        for size in sizes:
            sigma = None if output.sigma is None else resized_map(output.sigma, size, enlarge)
            output = replace(output, depth=resized_map(output.depth, size, enlarge), sigma=sigma)
        return output


def usual_focal(system: Predicts) -> float | None:
    """The relative focal length of images of unknown cameras; None where a camera has no say in the depth."""
    members = system.members if isinstance(system, HasMembers) else [system]
    return next((member.input_spec.focal for member in members if member.input_spec.focal is not None), None)


def relative_focals(cameras: Sequence[Camera | None]) -> npt.NDArray[np.float32]:
    """What ``infer`` takes as ``focal`` of images with these cameras."""
    return np.array([camera.relative_focal if camera else 0.0 for camera in cameras], np.float32)


def _mean(outputs: Sequence[DepthOutput], with_scenes: bool) -> DepthOutput:
    """Depth and, where all have the same scenes, scene probabilities averaged over systems."""
    probs = [output.scene_probs for output in outputs if output.scene_probs is not None]
    agree = with_scenes and len(probs) == len(outputs)
    return DepthOutput(
        depth=mean([output.depth for output in outputs]),
        scene_probs=mean(probs) if agree else None,
    )


def _enlarge(system: Predicts, resize: Resize) -> Enlarge:
    """How depth maps are enlarged: by the system's own statement, unless a protocol has fixed it."""
    if resize == "system":
        return system.input_spec.enlarge
    return "bilinear-aligned" if resize == "bilinear-aligned" else "bilinear"


def window_starts(size: Sequence[int], window: Sequence[int], stride: Sequence[int]) -> list[range]:
    """Where windows begin, vertically and horizontally; the last may reach beyond the image.

    Raises:
        UsageError: There would be more than ``MAX_WINDOWS``.
    """
    starts = [
        range(0, whole - min(side, whole) + step, step) for whole, side, step in zip(size, window, stride, strict=True)
    ]
    count = math.prod(map(len, starts))
    if count > MAX_WINDOWS:
        raise UsageError(
            f"{count} windows in an image of {size[1]}x{size[0]} pixels are more than the limit of {MAX_WINDOWS}; give "
            "larger windows or a larger stride"
        )
    return starts


def to_network_size(system: Predicts, image: Array) -> Array:
    """(B, 3, H, W) to (B, 3, h, w), as the system's InputSpec states."""
    spec = system.input_spec
    return resized_image(image, spec.network_size(*image.shape[-2:]), spec.shrink)
