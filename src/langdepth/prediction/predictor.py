"""From images to depth at the image's own size.

Data flow: sources -> ``read_image`` -> uint8 at the system's network size (in threads) -> batches of one network size
-> system -> depth at network size -> each image's own size -> ``DepthResult``.
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

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
from langdepth.prediction.network import Views, infer, to_image_size, to_network_size, window_starts
from langdepth.prediction.options import PredictOptions
from langdepth.prediction.results import DepthResult
from langdepth.prediction.sampling import Sampling
from langdepth.prediction.words import Words, batch_of, words_per_image
from langdepth.records import DepthOutput
from langdepth.systems.capabilities import DepthSystem, HasMembers, Imagines, require
from langdepth.text.scenes import scene_index
from langdepth.utils.devices import move
from langdepth.utils.images import DecodedImage, read_image

__all__ = ["predict_images", "predict_stream"]

# Whoever forks after torch has used its threads has a child without them, which would wait for them for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))

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
    **options: Any,
) -> DepthResult | list[DepthResult]:
    """Depth of one image (one result) or of several (a list in the same order).

    Text, scene, camera and overlay hold for all images, or are lists with one for each.

    Args:
        system: It is put in eval mode.
        images: Anything ``utils.images.read_image`` takes (path, bytes, PIL image, NumPy array, tensor (3, H, W)), a
            list of these, or a tensor (B, 3, H, W).
        text: A sentence about the image, or its CLIP feature: (D,) or (N, D), see ``words.words_per_image``.
        scene: A name of ``system.scenes``.
        camera: Known intrinsics, which go before those that EXIF states.
        overlay: For systems that take one, the image with masks drawn over it or a file of masks (see
            ``data.masks.read_overlay``), as many as images.
        **options: Fields of ``PredictOptions``. Without ``device`` the system stays where it is.

    Raises:
        UsageError: For options that do not fit.
        ImageError: For an unusable image.
        LangdepthError: When the system gives depth that is not finite.
    """
    one = _is_one(images)
    sources = [images] if one else list(images)
    cameras = _per_image("camera", camera, len(sources))
    texts, scenes = words_per_image(system, text, len(sources)), _per_image("scene", scene, len(sources))
    overlays = [None] * len(sources) if overlay is None else [overlay] if _is_one(overlay) else list(overlay)
    if len(overlays) != len(sources):
        raise UsageError(f"overlay: {len(overlays)} given for {len(sources)} images; each needs its own")
    predictor = _Predictor(system, options, keep_image=True)
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
    for index, result in stream or _run_ahead(predictor, enumerate(requests)):
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
    workers: int | None = None,
    keep_image: bool = False,
    **options: Any,
) -> Generator[tuple[Key, DepthResult | LangdepthError]]:
    """Depth of any number of images in bounded memory: yields (path, result), or (path, error) for an unusable one.

    Images are decoded ahead in threads and go through the system in batches of one network size, on a CPU in several
    threads; so results come in nearly, not exactly, the order of ``paths``. A result equals that of ``predict_images``.

    Args:
        system: It is put in eval mode.
        paths: One for each image, hashable.
        read: Turns a path into what ``read_image`` takes.
        text: Words about all images, or a function that gives the words about each.
        scene: A name of ``system.scenes``.
        camera: Known intrinsics, which go before those that EXIF states.
        overlay: Turns a path into what ``read_overlay`` takes, for systems that need one.
        workers: Threads that decode; None for one per core, at most 8.
        keep_image: Whether results hold the image.
        **options: Fields of ``PredictOptions``.

    Raises:
        UsageError: For options that do not fit.
    """
    predictor = _Predictor(system, options, keep_image=keep_image, each_its_words=callable(text))
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
    return _run_ahead(predictor, requests, workers)


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


class _Predictor:
    """A system with the options that hold for all images. Its methods may run in any thread."""

    def __init__(
        self, system: DepthSystem, options: dict[str, Any], *, keep_image: bool, each_its_words: bool = False
    ) -> None:
        self.options = _options(options)
        self.sampling = _sampling(system, self.options)
        self.system = move(system, self.options.device).eval()
        self.network = self.system.inference_copy()
        self.device = system.device
        self.keep_image, self.each_its_words = keep_image, each_its_words

    def prepare(self, request: _Request) -> _Prepared:
        """Decode and shrink. Raises ImageError for an unusable image, UsageError for a camera that does not fit."""
        image = read_image(request.source)
        height, width = image.pixels.shape[:2]
        if self.options.window is not None:
            window_starts((height, width), self.options.window, self.options.stride or self.options.window)
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
        return to_network_size(self.system, image) if self.options.window is None else image

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
        options, requests = self.options, [prepared.request for _, prepared in batch]
        text = batch_of(self.system, [request.text for request in requests])
        overlays = [prepared.overlay for _, prepared in batch if prepared.overlay is not None]
        views = Views(
            image=torch.cat([prepared.image for _, prepared in batch]).to(self.device),
            text=text.to(self.device) if isinstance(text, Tensor) else text,
            scene=[request.scene for request in requests if request.scene is not None] or None,  # of all or of none
            overlay=torch.cat(overlays).to(self.device) if overlays else None,
        )
        dtype = getattr(torch, options.dtype)
        with torch.autocast(self.device.type, dtype=dtype, enabled=options.dtype != "float32"):
            if self.sampling is not None:
                output = self.sampling(self.network, views.image, views.text)
            elif isinstance(self.network, HasMembers):
                output = infer(
                    self.network, **vars(views), flip=options.flip, window=options.window, stride=options.stride
                )
            elif options.window is None:
                output = views.forward(self.network, flip=options.flip)
            else:
                output = views.through_windows(self.network, options.window, options.stride, flip=options.flip)
        probs, std = (None if part is None else part.float().cpu() for part in (output.scene_probs, output.std))
        return DepthOutput(depth=output.depth.cpu(), scene_probs=probs, std=std)

    @torch.inference_mode()
    def _result(self, prepared: _Prepared, output: DepthOutput, index: int) -> DepthResult:
        def own(maps: Tensor) -> npt.NDArray[np.float32]:
            enlarged = to_image_size(maps[index : index + 1], prepared.size, self.system.input_spec.enlarge)
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
                "flip": self.options.flip,
                "window": self.options.window,
                "stride": self.options.stride,
                "sampling": None if self.sampling is None else asdict(self.sampling),
                "dtype": self.options.dtype,
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
        coarse = "" if self.options.dtype == "float32" else f", or {self.options.dtype} too coarse"
        return LangdepthError(
            f"{prepared.path or 'image in memory'}: the system '{self.system.name}' gave depth that is not finite; "
            f"its weights may be damaged{coarse}"
        )


def _run_ahead(
    predictor: _Predictor, requests: Iterable[tuple[Key, _Request]], workers: int | None = None
) -> Generator[tuple[Key, DepthResult | LangdepthError]]:
    """Decode ahead, gather images of one network size, predict; bounded however many requests there are."""
    requests, batch_size, workers = iter(requests), predictor.options.batch_size, workers or min(8, os.cpu_count() or 1)
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


def _options(options: dict[str, Any]) -> PredictOptions:
    known = [field.name for field in fields(PredictOptions)]
    unknown = next((name for name in options if name not in known), None)
    if unknown is not None:
        raise UsageError(f"unknown option '{unknown}': {nearest(unknown, known)}")
    return PredictOptions(**{name: value for name, value in options.items() if value is not None})


def _sampling(system: DepthSystem, options: PredictOptions) -> Sampling | None:
    if options.samples is None:
        return None
    require(system, Imagines)
    spread, seed = 0.5 if options.spread is None else options.spread, options.seed or 0
    return Sampling(samples=options.samples, spread=spread, seed=seed)


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
    if not isinstance(name, str):
        raise UsageError(f"scene: expected a name, got {name!r}")
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
        camera = option(width, height) if callable(option) else option
        if not isinstance(camera, Camera):
            raise UsageError(f"camera: expected a Camera, or a function (width, height) that gives one, got {camera!r}")
        camera.require_credible()
        if abs(camera.height * width / camera.width - height) > 1:
            raise UsageError(f"the camera is for {camera.width}x{camera.height} pixels, the image is {width}x{height}")
    except UsageError as error:
        raise UsageError(f"{path or 'image in memory'}: {error}") from None
    return camera if (camera.width, camera.height) == (width, height) else camera.scaled(width, height)
