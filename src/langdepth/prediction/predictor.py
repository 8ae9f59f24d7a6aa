"""From images to depth at the image's own size.

Data flow: sources -> ``read_image`` -> uint8 at the system's network size (in threads) -> batches of one network size
-> system -> depth at network size -> each image's own size -> ``DepthResult``.
"""

from __future__ import annotations

import math
import os
import warnings
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from langdepth._version import __version__
from langdepth.camera import Camera
from langdepth.data.masks import read_overlay
from langdepth.errors import (
    FileWarning,
    ImageError,
    LangdepthError,
    ShortMemoryError,
    UsageError,
    first_few,
    is_memory_error,
    nearest,
)
from langdepth.evaluation.protocols import Resize, check_window
from langdepth.prediction.results import DepthResult
from langdepth.prediction.words import Words, batch_of, words_per_image
from langdepth.records import DepthOutput, Enlarge, Shrink
from langdepth.systems.capabilities import DepthSystem, HasMembers, Imagines, require
from langdepth.text.scenes import scene_index
from langdepth.utils.devices import move
from langdepth.utils.images import DecodedImage, read_image

__all__ = ["infer", "predict_images", "predict_stream"]

# Whoever forks after torch has used its threads has a child without them, which would wait for them for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))

BATCH_SIZE = 4
MAX_WINDOWS = 10_000
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# The camera of every image, or a function of (width, height) that makes it.
CameraOption = Camera | Callable[[int, int], Camera] | None
Key = TypeVar("Key", bound=Hashable)


def predict_images(
    system: DepthSystem,
    images: Any,
    *,
    text: str | Sequence[str] | Tensor | Sequence[Tensor] | None = None,
    scene: str | Sequence[str] | None = None,
    camera: CameraOption | Sequence[CameraOption] = None,
    overlay: Any = None,
    flip: bool = False,
    window: tuple[int, int] | None = None,
    stride: tuple[int, int] | None = None,
    samples: int | None = None,
    spread: float = 0.5,
    seed: int = 0,
    device: str | torch.device | None = None,
    dtype: str | None = None,
    batch_size: int = BATCH_SIZE,
) -> DepthResult | list[DepthResult]:
    """Depth of one image (one result) or of several (a list in the same order).

    ``images``: anything ``utils.images.read_image`` takes (path, bytes, PIL image, NumPy array, tensor (3, H, W)),
    or a list of these, or a tensor (B, 3, H, W). ``text``: a sentence about the image, or its CLIP feature: (D,) or
    (N, D), see ``prediction.words.words_per_image``; ``scene``: a name of ``system.scenes``; ``camera``: known
    intrinsics, which go before those that EXIF states; each one for all images or one per image. ``overlay``: for
    systems that take one, the image with masks drawn over it or a file of masks (see ``data.sam.read_overlay``), as
    many as images. ``flip`` averages with the mirrored image. ``window``, ``stride``: look through windows of
    (height, width) pixels, see ``infer``. ``samples``: for systems that imagine, draw so many depths near the one that
    the image shows; the result is their mean, with their standard deviation. ``spread`` says how far they lie apart
    (see ``Imagines.draw``), and every image takes the noise of ``seed``. ``device``: None leaves the system where it
    is, "auto" moves it to an accelerator if there is one. ``dtype``: "float32" (None) or "bfloat16". The system is put
    in eval mode.

    Raises UsageError for options that do not fit, ImageError for an unusable image, LangdepthError when the system
    gives depth that is not finite.
    """
    one = _is_one(images)
    sources = [images] if one else list(images)
    cameras = _per_image("camera", camera, len(sources))
    texts, scenes = words_per_image(system, text, len(sources)), _per_image("scene", scene, len(sources))
    overlays = [None] * len(sources) if overlay is None else [overlay] if _is_one(overlay) else list(overlay)
    if len(overlays) != len(sources):
        raise UsageError(f"overlay: {len(overlays)} given for {len(sources)} images; each needs its own")
    sampling = None if samples is None else Sampling(samples=samples, spread=spread, seed=seed)
    predictor = _Predictor(
        system, flip=flip, window=window, stride=stride, sampling=sampling, device=device, dtype=dtype, keep_image=True
    )
    requests = [
        _Request(
            source=source,
            text=words,
            scene=_known_scene(system, place),
            camera=lens,
            overlay=_needed_overlay(system, second),
        )
        for source, words, place, lens, second in zip(sources, texts, scenes, cameras, overlays, strict=True)
    ]
    results: dict[int, DepthResult] = {}
    # One image needs no threads: they would only add to the time until it is there.
    stream = predictor.run([(0, predictor.prepare(requests[0]))]) if one else None
    for index, result in stream or _stream(predictor, enumerate(requests), batch_size):
        if isinstance(result, LangdepthError):
            raise result
        results[index] = result
    return results[0] if one else [results[index] for index in range(len(sources))]


def predict_stream(
    system: DepthSystem,
    paths: Iterable[Key],
    *,
    read: Callable[[Key], Any] = lambda path: path,
    text: str | Tensor | Callable[[Key], Words | None] | None = None,
    scene: str | None = None,
    camera: CameraOption = None,
    overlay: Callable[[Key], Any] = lambda path: None,
    flip: bool = False,
    window: tuple[int, int] | None = None,
    stride: tuple[int, int] | None = None,
    samples: int | None = None,
    spread: float = 0.5,
    seed: int = 0,
    device: str | torch.device | None = None,
    dtype: str | None = None,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    keep_image: bool = False,
) -> Generator[tuple[Key, DepthResult | LangdepthError]]:
    """Depth of any number of images in bounded memory: yields (path, result), or (path, error) for an unusable one.

    Images are decoded ahead in ``workers`` threads (None: one per core, at most 8) and go through the system in
    batches of one network size; so results come in nearly, not exactly, the order of ``paths``. A result equals that
    of ``predict_images``, but holds the ``image`` only with ``keep_image``. ``batch_size`` images are in the
    network at once, on a CPU in several threads. ``read`` turns an item of ``paths`` into what ``read_image`` takes,
    ``overlay`` into what ``read_overlay`` takes, for systems that need one; ``text`` may be a function that gives the
    words about each. The other options are those of ``predict_images``, the same for all images.

    Raises UsageError for options that do not fit.
    """
    sampling = None if samples is None else Sampling(samples=samples, spread=spread, seed=seed)
    predictor = _Predictor(
        system,
        flip=flip,
        window=window,
        stride=stride,
        sampling=sampling,
        device=device,
        dtype=dtype,
        keep_image=keep_image,
        each_its_words=callable(text),
    )
    scene = _known_scene(system, scene)
    if callable(text) and not system.text_per_image:
        raise UsageError(f"the system '{system.name}' takes no captions of images; leave them out")
    shared = None if callable(text) else words_per_image(system, text, 1)[0]
    requests = (
        (
            path,
            _Request(
                source=read(path),
                text=text(path) if callable(text) else shared,
                scene=scene,
                camera=camera,
                overlay=_needed_overlay(system, overlay(path)),
            ),
        )
        for path in paths
    )
    return _stream(predictor, requests, batch_size, workers)


@torch.inference_mode()
def infer(
    system: DepthSystem,
    image: Tensor,
    text: list[str] | Tensor | None = None,
    scene: list[str] | None = None,
    *,
    overlay: Tensor | None = None,
    flip: bool = False,
    resize: Resize = "system",
    limit: float | None = None,
    window: tuple[int, int] | None = None,
    stride: tuple[int, int] | None = None,
    via: tuple[int, int] | None = None,
) -> DepthOutput:
    """Depth of a batch at its own size.

    ``image``: (B, 3, H, W), float32 in [0, 1] or uint8 in [0, 255], any size. It is resized to the size the system's
    InputSpec asks for, in the way that states; the depth is resized back to (B, 1, H, W). ``overlay``: like
    ``image``, for systems that take one (the images with masks drawn over them). ``flip`` averages
    the depth with that of the mirrored image; ``limit`` puts both into [0, limit] metres first. ``resize``:
    "system" enlarges the depth as the InputSpec states, "bilinear" with pixel centres, "bilinear-aligned" with corners
    of the depth on those of the image. ``via``: the depth takes this (height, width) first.

    ``window``: look at the images through windows of (height, width) pixels instead, every ``stride`` pixels (None:
    side by side), the last ones moved back to the border; smaller images are one window. Each window is an image of
    its own to the system; depth and scene probabilities are the means over windows. As many windows go through
    the network at once as make up the pixels of the images. A system of any input size sees them as they are, not
    enlarged to the area of its InputSpec.
    """
    if isinstance(system, HasMembers):
        options: dict[str, Any] = {"flip": flip, "resize": resize, "limit": limit, "window": window, "stride": stride}
        return _mean(
            [
                infer(member, image, text, scene, overlay=overlay if member.takes_overlay else None, via=via, **options)
                for member in system.members
            ],
            with_scenes=bool(system.scenes),
        )
    if window is not None:
        return _through_windows(system, image, text, scene, overlay, flip, limit, resize, window, stride or window)
    overlay = None if overlay is None else to_network_size(system, overlay)
    output = _forward(system, to_network_size(system, image), text, scene, overlay, flip, limit)
    enlarge = _stated(system, resize)
    depth = output.depth if via is None else _to_image_size(output.depth, via, enlarge)
    return replace(output, depth=_to_image_size(depth, image.shape[-2:], enlarge))


def _mean(outputs: Sequence[DepthOutput], with_scenes: bool) -> DepthOutput:
    """Depth and, where all have the same scenes, scene probabilities averaged over systems."""
    probs = [output.scene_probs for output in outputs if output.scene_probs is not None]
    agree = with_scenes and len(probs) == len(outputs)
    return DepthOutput(
        depth=torch.stack([output.depth for output in outputs]).mean(0),
        scene_probs=torch.stack(probs).mean(0) if agree else None,
    )


# The steps, each used by both the batch above and the stream below.


def to_network_size(system: DepthSystem, image: Tensor) -> Tensor:
    """(B, 3, H, W) to (B, 3, h, w). Bytes stay bytes when they are averaged, so that nothing large becomes float."""
    return _resized(image, system.input_spec.network_size(*image.shape[-2:]), system.input_spec.shrink)


def _resized(image: Tensor, size: tuple[int, int], shrink: Shrink) -> Tensor:
    if tuple(image.shape[-2:]) == size:
        return image
    if shrink == "bilinear-aligned":
        return F.interpolate(as_float(image), size=size, mode="bilinear", align_corners=True)
    if image.dtype == torch.uint8 and image.device.type != "cpu":  # where torch cannot resize bytes
        return _resized(image.float(), size, shrink).round_().byte()
    return F.interpolate(image, size=size, mode="bilinear", antialias=True)


def as_float(image: Tensor) -> Tensor:
    """Bytes in [0, 255] as float32 in [0, 1]; floats as they are."""
    return image.float().div_(255) if image.dtype == torch.uint8 else image


def _forward(
    system: DepthSystem,
    image: Tensor,
    text: list[str] | Tensor | None,
    scene: list[str] | None,
    overlay: Tensor | None,
    flip: bool,
    limit: float | None = None,
) -> DepthOutput:
    """(B, 3, h, w) uint8 or float to the system's output, depth in float32. The mirrored images are in the batch."""
    count = len(image)
    if flip:
        image = torch.cat([image, image.flip(-1)])
        overlay = None if overlay is None else torch.cat([overlay, overlay.flip(-1)])
        text, scene = _words_of(system, text, scene, views=2)
    second = {} if overlay is None else {"overlay": as_float(overlay)}
    output: DepthOutput = system(as_float(image), text, scene, **second)
    depth = output.depth.float()
    if limit is not None:
        depth = depth.clamp(0, limit)
    if not flip:
        return replace(output, depth=depth)
    mirrored = depth[count:].flip(-1)
    fields = {name: value[:count] for name, value in vars(output).items() if value is not None}
    return DepthOutput(**{**fields, "depth": (depth[:count] + mirrored) / 2})


def _words_of(
    system: DepthSystem, text: list[str] | Tensor | None, scene: list[str] | None, views: int
) -> tuple[list[str] | Tensor | None, list[str] | None]:
    """Text and scene for a batch that holds all images so many times."""
    if isinstance(text, Tensor):
        text = torch.cat([text] * views) if system.text_per_image else text
    elif text is not None:
        text = text * views
    return text, None if scene is None else scene * views


def _through_windows(
    system: DepthSystem,
    image: Tensor,
    text: list[str] | Tensor | None,
    scene: list[str] | None,
    overlay: Tensor | None,
    flip: bool,
    limit: float | None,
    resize: Resize,
    window: tuple[int, int],
    stride: tuple[int, int],
) -> DepthOutput:
    """(B, 3, H, W) to depth (B, 1, H, W) by overlapping windows, see ``infer``."""
    count, size = len(image), image.shape[-2:]
    height, width = min(window[0], size[0]), min(window[1], size[1])
    network_size, shrink = replace(system.input_spec, area=None).network_size(height, width), system.input_spec.shrink
    tops, lefts = _window_starts(size, window, stride)
    places = [
        (..., slice(top, top + height), slice(left, left + width))
        for top in (min(top, size[0] - height) for top in tops)
        for left in (min(left, size[1] - width) for left in lefts)
    ]
    at_once = max(1, size[0] * size[1] // max(height * width, math.prod(network_size)))
    total, seen = (torch.zeros(n, 1, *size, device=image.device) for n in (count, 1))
    scene_probs: list[Tensor] = []
    for some in (places[i : i + at_once] for i in range(0, len(places), at_once)):
        views = _resized(torch.cat([image[place] for place in some]), network_size, shrink)
        over = (
            None if overlay is None else _resized(torch.cat([overlay[place] for place in some]), network_size, shrink)
        )
        words = _words_of(system, text, scene, views=len(some))
        output = _forward(system, views, *words, over, flip, limit)
        depth = _to_image_size(output.depth, (height, width), _stated(system, resize))
        for place, part in zip(some, depth.split(count), strict=True):
            total[place] += part
            seen[place] += 1
        if output.scene_probs is not None:
            scene_probs.extend(output.scene_probs.split(count))
    return DepthOutput(depth=total / seen, scene_probs=torch.stack(scene_probs).mean(0) if scene_probs else None)


def _window_starts(size: Sequence[int], window: Sequence[int], stride: Sequence[int]) -> list[range]:
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


def _stated(system: DepthSystem, resize: Resize) -> Enlarge:
    """How depth maps are enlarged: by the system's own statement, unless a protocol has fixed it."""
    if resize == "system":
        return system.input_spec.enlarge
    return "bilinear-aligned" if resize == "bilinear-aligned" else "bilinear"


def _to_image_size(depth: Tensor, size: Sequence[int], enlarge: Enlarge) -> Tensor:
    if tuple(depth.shape[-2:]) == tuple(size):
        return depth
    return F.interpolate(depth, size=tuple(size), mode="bilinear", align_corners=enlarge == "bilinear-aligned")


# One image and many.


@dataclass(frozen=True, kw_only=True)
class _Request:
    """One image to predict and what was said about it."""

    source: Any
    text: Words | None
    scene: str | None
    camera: CameraOption
    overlay: Any


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """A decoded image: ``image``, ``overlay`` (1, 3, h, w) at network size or, for windows, at its own ``size``
    (H, W); uint8, or floats where the system's ``shrink`` makes some."""

    request: _Request
    image: Tensor
    overlay: Tensor | None
    size: tuple[int, int]
    camera: Camera | None
    path: str
    pixels: npt.NDArray[np.uint8] | None


@contextmanager
def _enough_memory(name: str) -> Iterator[None]:
    """Whatever says inside that memory is short, as ShortMemoryError naming the image."""
    try:
        yield
    except LangdepthError:
        raise
    except (RuntimeError, MemoryError) as error:
        if not is_memory_error(error):
            raise
        raise ShortMemoryError(
            f"{name or 'image in memory'}: not enough memory for its pixels; make it smaller, or use a smaller batch "
            "size, smaller windows or another device"
        ) from None


def require_seed(seed: int) -> None:
    """Raise UsageError for a seed that torch does not take."""
    if not 0 <= seed < 2**63:
        raise UsageError("seed must be from 0 to below 2^63, which this one is not")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How depths near the one that an image shows are drawn. Raises UsageError for values that make no sense."""

    samples: int
    spread: float
    seed: int

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise UsageError(f"samples must be at least 2, got {self.samples}: one has no spread")
        require_seed(self.seed)
        if not 0 < self.spread <= 1:
            raise UsageError(f"spread must be above 0 and at most 1, got {self.spread:g}")

    def __call__(self, system: DepthSystem, image: Tensor, text: list[str] | Tensor | None) -> DepthOutput:
        """Mean and standard deviation (B, 1, h, w); an image's own do not depend on what else is in the batch."""
        generator = torch.Generator().manual_seed(self.seed)
        height, width = image.shape[-2:]
        system = require(system, Imagines)
        noise = system.draw_noise(self.samples, height, width, generator)
        image = as_float(image)
        # One by one: each fills the network with its samples.
        drawn = []
        for i in range(len(image)):
            words = None if text is None else text[i : i + 1]
            drawn.append(torch.std_mean(system.draw(image[i : i + 1], words, noise, self.spread).depth.float(), 0))
        std, mean = (torch.stack(maps) for maps in zip(*drawn, strict=True))
        return DepthOutput(depth=mean, std=std)


class _Predictor:
    """A system with the options that hold for all images. Its methods may run in any thread."""

    def __init__(
        self,
        system: DepthSystem,
        *,
        flip: bool,
        window: tuple[int, int] | None,
        stride: tuple[int, int] | None,
        sampling: Sampling | None,
        device: str | torch.device | None,
        dtype: str | None,
        keep_image: bool,
        each_its_words: bool = False,
    ) -> None:
        check_window(window, stride)
        if sampling is not None and (flip or window is not None):
            raise UsageError("samples go with neither flip nor windows; leave one of them out")
        if dtype not in (None, *DTYPES):
            raise UsageError(f"unknown dtype '{dtype}': {nearest(str(dtype), DTYPES)}")
        self.system = move(system, device).eval()
        self.network = self.system.inference_copy()
        self.device = system.device
        self.window, self.stride, self.sampling = window, stride, sampling
        if sampling is not None:
            require(system, Imagines)
        self.flip, self.dtype, self.keep_image = flip, dtype or "float32", keep_image
        self.each_its_words = each_its_words

    def prepare(self, request: _Request) -> _Prepared:
        """Decode and shrink. Raises ImageError for an unusable image, UsageError for a camera that does not fit."""
        image = read_image(request.source)
        height, width = image.pixels.shape[:2]
        if self.window is not None:
            _window_starts((height, width), self.window, self.stride or self.window)
        if image.cut and request.camera is None:
            note = "EXIF describes a larger image, of which this is a part: its focal length is not used"
            warnings.warn(FileWarning(image.path or "image", note), stacklevel=2)
        with _enough_memory(image.path):
            overlay = self._overlay(request, image)
            return _Prepared(
                request=request,
                image=self._shrink(image.pixels),
                overlay=None if overlay is None else self._shrink(overlay),
                size=(height, width),
                camera=_camera_of(request.camera, width, height, image.path) or image.camera,
                path=image.path,
                pixels=image.pixels if self.keep_image else None,
            )

    def _overlay(self, request: _Request, image: DecodedImage) -> npt.NDArray[np.uint8] | None:
        if request.overlay is None:
            return None
        try:
            return read_overlay(request.overlay, image.pixels)
        except ImageError as error:
            raise ImageError(f"{image.path or 'image in memory'}: its overlay {error}") from None

    def _shrink(self, pixels: npt.NDArray[np.uint8]) -> Tensor:
        """(H, W, 3) to (1, 3, h, w) at network size; for windows at its own."""
        writeable = torch.from_numpy(np.require(pixels, requirements="W"))  # torch has no read-only tensors
        image = writeable.permute(2, 0, 1)[None]
        return to_network_size(self.system, image) if self.window is None else image

    def run(self, batch: list[tuple[Key, _Prepared]]) -> Iterator[tuple[Key, DepthResult | LangdepthError]]:
        """Images of one network size to their results."""
        return self.results(batch, self.infer(batch))

    def own_sentences(self, batch: Sequence[tuple[Any, _Prepared]]) -> bool:
        """Whether each image of the batch has a sentence of its own."""
        words = [prepared.request.text for _, prepared in batch]
        return self.each_its_words and all(one is not None and one.feature is None for one in words)

    def results(
        self, batch: list[tuple[Key, _Prepared]], output: DepthOutput
    ) -> Iterator[tuple[Key, DepthResult | LangdepthError]]:
        """Depth at network size to results at image size, made one by one as the caller takes them."""
        finite = output.depth.isfinite().flatten(1).all(1).tolist()
        for index, (key, prepared) in enumerate(batch):
            try:
                with _enough_memory(prepared.path):
                    result = self._result(prepared, output, index) if finite[index] else self._not_finite(prepared)
            except LangdepthError as error:
                result = error
            yield key, result

    @torch.inference_mode()
    def infer(self, batch: Sequence[tuple[Any, _Prepared]]) -> DepthOutput:
        """Images of one network size through the system; depth, std and scene_probs at network size, on the CPU."""
        named = first_few([prepared.path or "image in memory" for _, prepared in batch])
        with _enough_memory(named):
            return self._infer(batch)

    def _infer(self, batch: Sequence[tuple[Any, _Prepared]]) -> DepthOutput:
        requests = [prepared.request for _, prepared in batch]
        text = batch_of(self.system, [request.text for request in requests])
        text = text.to(self.device) if isinstance(text, Tensor) else text
        scene = [request.scene for request in requests if request.scene is not None]  # all or none of a call have one
        image = torch.cat([prepared.image for _, prepared in batch]).to(self.device)
        overlays = [prepared.overlay for _, prepared in batch if prepared.overlay is not None]
        overlay = torch.cat(overlays).to(self.device) if overlays else None
        with torch.autocast(self.device.type, dtype=DTYPES[self.dtype], enabled=self.dtype != "float32"):
            images = (self.network, image, text, scene or None, overlay, self.flip, None)
            if self.sampling is not None:
                output = self.sampling(self.network, image, text)
            elif isinstance(self.network, HasMembers):
                options: dict[str, Any] = {"flip": self.flip, "window": self.window, "stride": self.stride}
                output = infer(self.network, image, text, scene or None, overlay=overlay, **options)
            elif self.window is None:
                output = _forward(*images)
            else:
                output = _through_windows(*images, "system", self.window, self.stride or self.window)
        scene_probs = None if output.scene_probs is None else output.scene_probs.float().cpu()
        std = None if output.std is None else output.std.float().cpu()
        return DepthOutput(depth=output.depth.cpu(), scene_probs=scene_probs, std=std)

    @torch.inference_mode()
    def _result(self, prepared: _Prepared, output: DepthOutput, index: int) -> DepthResult:
        def own(maps: Tensor) -> npt.NDArray[np.float32]:
            enlarged = _to_image_size(maps[index : index + 1], prepared.size, self.system.input_spec.enlarge)
            found: npt.NDArray[np.float32] = enlarged[0, 0].numpy()
            return found

        depth = own(output.depth)
        system, request = self.system, prepared.request
        return DepthResult(
            depth=depth,
            valid=depth > 0,
            system=system.name,
            unit="metre" if system.scale_kind == "metric" else "relative",
            scale_kind=system.scale_kind,
            camera=prepared.camera,
            provenance={
                "langdepth_version": __version__,
                "weights": {key: system.provenance.get(key) for key in ("weights", "source", "licence", "sha256")},
                **({"members": system.provenance["members"]} if isinstance(system, HasMembers) else {}),
                "path": prepared.path,
                "text": None if request.text is None else request.text.label,
                "scene": request.scene,
                "network_size": None if isinstance(system, HasMembers) else list(prepared.image.shape[-2:]),
                "flip": self.flip,
                "window": self.window,
                "stride": self.stride,
                "sampling": None if self.sampling is None else asdict(self.sampling),
                "dtype": self.dtype,
            },
            scene_probs=(
                None
                if output.scene_probs is None
                else dict(zip(system.scenes, output.scene_probs[index].tolist(), strict=True))
            ),
            image=prepared.pixels,
            std=None if output.std is None else own(output.std),
        )

    def _not_finite(self, prepared: _Prepared) -> LangdepthError:
        return LangdepthError(
            f"{prepared.path or 'image in memory'}: the system '{self.system.name}' gave depth that is not finite; "
            f"its weights may be damaged{'' if self.dtype == 'float32' else f', or {self.dtype} too coarse'}"
        )


def _stream(
    predictor: _Predictor,
    requests: Iterable[tuple[Key, _Request]],
    batch_size: int,
    workers: int | None = None,
) -> Generator[tuple[Key, DepthResult | LangdepthError]]:
    """Decode ahead, gather images of one network size, predict; bounded however many requests there are."""
    if batch_size < 1:
        raise UsageError(f"batch size must be at least 1, got {batch_size}")
    return _run_ahead(predictor, iter(requests), batch_size, workers or min(8, os.cpu_count() or 1))


def _run_ahead(
    predictor: _Predictor, requests: Iterator[tuple[Key, _Request]], batch_size: int, workers: int
) -> Generator[tuple[Key, DepthResult | LangdepthError]]:
    # On a CPU several networks side by side, each with its share of the threads and of the batch, do more than one with
    # all threads: there is less waiting for each other, also for the threads that decode and write.
    threads = torch.get_num_threads()
    lanes = min(threads, batch_size) if predictor.device.type == "cpu" else 1
    share = -(-batch_size // lanes)
    decoders = ThreadPoolExecutor(workers, "langdepth-decode")
    networks = ThreadPoolExecutor(lanes, "langdepth-network", torch.set_num_threads, (threads // lanes,))
    ahead: deque[tuple[Key, Future[_Prepared]]] = deque()
    waiting: dict[Hashable, list[tuple[Key, _Prepared]]] = {}  # of one shape, and told in one way
    running: deque[tuple[list[tuple[Key, _Prepared]], Future[DepthOutput]]] = deque()

    def submit(batch: list[tuple[Key, _Prepared]]) -> None:
        running.append((batch, networks.submit(predictor.infer, batch)))

    def finished(most: int) -> Iterator[tuple[Key, DepthResult | LangdepthError]]:
        """Results of the oldest batches until ``most`` are left running."""
        while len(running) > most:
            batch, future = running.popleft()
            try:
                output = future.result()
            except UsageError:
                if not predictor.own_sentences(batch):
                    raise
                yield from _one_by_one(predictor, batch)
            except ShortMemoryError:
                wait([other for _, other in running])  # what they hold may be all that lacks
                yield from _one_by_one(predictor, batch)
            else:
                yield from predictor.results(batch, output)

    try:
        while True:
            for key, request in islice(requests, batch_size + workers - len(ahead)):
                ahead.append((key, decoders.submit(predictor.prepare, request)))
            if not ahead:
                break
            key, decoded = ahead.popleft()
            try:
                prepared = decoded.result()
            except LangdepthError as error:  # also a camera that does not fit this image
                yield key, error
                continue
            words = prepared.request.text
            told = "" if words is None else "sentence" if words.feature is None else "feature"
            waiting.setdefault((*prepared.image.shape, told), []).append((key, prepared))
            largest = max(waiting, key=lambda shape: len(waiting[shape]))
            # Many shapes at once: the fullest batch goes before it is full, so that few images are held.
            if len(waiting[largest]) == share or sum(map(len, waiting.values())) == 4 * batch_size:
                submit(waiting.pop(largest))
                yield from finished(most=lanes)
        for batch in waiting.values():
            submit(batch)
        yield from finished(most=0)
    finally:
        decoders.shutdown(wait=True, cancel_futures=True)
        networks.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads)  # setting it in a thread also set what later threads start with


def _one_by_one(
    predictor: _Predictor, batch: list[tuple[Key, _Prepared]]
) -> Iterator[tuple[Key, DepthResult | LangdepthError]]:
    """The results of a batch that failed by a sentence or for lack of memory: that costs its own image alone."""
    for key, prepared in batch:
        try:
            yield from predictor.run([(key, prepared)])
        except UsageError as error:
            yield key, LangdepthError(f"{prepared.path or 'image in memory'}: {error}")
        except ShortMemoryError as error:
            yield key, error


# Options.


def _is_one(images: Any) -> bool:
    """Whether it is one image, not a list or a batch of them."""
    return not isinstance(images, list | tuple) and not (isinstance(images, Tensor) and images.ndim == 4)


def _per_image(name: str, value: Any, count: int) -> list[Any]:
    """One value per image from one for all or a sequence."""
    if not isinstance(value, list | tuple):
        return [value] * count
    if len(value) != count:
        raise UsageError(f"{name}: {len(value)} given for {count} images; give one for all, or one per image")
    if None in value and name != "camera":
        raise UsageError(f"{name}: give it for all images or for none")
    return list(value)


def _known_scene(system: DepthSystem, name: str | None) -> str | None:
    if name is None:
        return None
    if not system.scenes:
        raise UsageError(f"the system '{system.name}' takes no scene; leave it out")
    return system.scenes[scene_index(name, system.scenes)]


def _needed_overlay(system: DepthSystem, source: Any) -> Any:
    if source is not None and not system.takes_overlay:
        raise UsageError(f"the system '{system.name}' takes no overlay; leave it out")
    if source is None and system.takes_overlay:
        raise UsageError(
            f"the system '{system.name}' needs an overlay beside every image, the image with SAM's masks drawn "
            "over it: make them with 'langdepth data sam' and name their folder with --overlay"
        )
    return source


def _camera_of(option: CameraOption, width: int, height: int, path: str) -> Camera | None:
    if option is None:
        return None
    try:
        camera = option if isinstance(option, Camera) else option(width, height)
        camera.require_credible()
        if abs(camera.height * width / camera.width - height) > 1:
            raise UsageError(f"the camera is for {camera.width}x{camera.height} pixels, the image is {width}x{height}")
    except UsageError as error:
        raise UsageError(f"{path or 'image in memory'}: {error}") from None
    return camera if (camera.width, camera.height) == (width, height) else camera.scaled(width, height)
