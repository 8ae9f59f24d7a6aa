"""One image, or a batch of one network size, through a system: decode and shrink, predict, enlarge.

What takes memory reports a lack of it by the image's name.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from langdepth._version import __version__
from langdepth.camera import Camera, CameraFile
from langdepth.errors import (
    FileWarning,
    ImageError,
    LangdepthError,
    ShortMemoryError,
    UsageError,
    first_few,
    first_line,
    is_memory_error,
    nearest,
)
from langdepth.lenses import Straightening
from langdepth.prediction.arrays import all_finite, as_float32, not_finite, resized_map, to_numpy
from langdepth.prediction.network import Views, infer, relative_focals, to_network_size, usual_focal, window_starts
from langdepth.prediction.options import PredictOptions
from langdepth.prediction.results import DepthResult
from langdepth.prediction.sampling import Sampling
from langdepth.prediction.sky import Mask, is_outdoors, sky_of
from langdepth.prediction.words import Words, batch_of
from langdepth.records import DepthOutput
from langdepth.systems.contract import Array, HasMembers, Imagines, Predicts, require
from langdepth.utils.images import DecodedImage, read_image

# The camera of every image, or a function of (width, height) that makes it.
CameraOption = Camera | Callable[[int, int], Camera] | None
Outcome = DepthResult | LangdepthError
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Request:
    """One image to predict and what was said about it."""

    source: Any
    text: Words | None
    scene: str | None
    camera: CameraOption
    overlay: Any


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A decoded image: ``image``, ``overlay`` (1, 3, h, w) at network size or, for windows, at its own ``size``
    (H, W); uint8, or floats where the system's ``shrink`` makes some. ``camera``: of this image. ``lens``: the way in
    which it was straightened, where it then shows something, (H, W), and the camera that it had before."""

    request: Request
    image: Array
    overlay: Array | None
    size: tuple[int, int]
    camera: Camera
    path: str
    pixels: npt.NDArray[np.uint8] | None
    lens: tuple[Straightening, npt.NDArray[np.bool_], Camera] | None = None

    @property
    def group(self) -> Hashable:
        """Images of one group can share a batch: of one size, and with words of one kind."""
        words = self.request.text
        return (*self.image.shape, words is None, words is not None and words.feature is None)


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


class Predictor:
    """A system with the options that hold for all images. Its methods may run in any thread."""

    def __init__(
        self, system: Predicts, options: dict[str, Any], *, keep_image: bool, each_its_words: bool = False
    ) -> None:
        self.options = _options(options)
        if self.options.window is not None and not system.takes_windows:
            raise UsageError(
                f"windows: the exported file of '{system.name}' resizes whatever it gets to the size of a whole image; "
                "give the weights or the name that was exported instead of it"
            )
        self.sampling = _sampling(system, self.options)
        self.system = system
        self.network = system.for_inference(self.options.device, self.options.dtype)
        self.keep_image, self.each_its_words = keep_image, each_its_words

    def prepare(self, request: Request) -> Prepared:
        """Decode and shrink. Raises ImageError for an unusable image, UsageError for a camera that does not fit."""
        image = read_image(request.source)
        height, width = image.pixels.shape[:2]
        if self.options.window is not None:
            window_starts((height, width), self.options.window, self.options.stride or self.options.window)
        if image.cut and request.camera is None:
            which = "a larger image, of which this is a part, or one view of this panorama"
            note = f"EXIF describes {which}: its focal length is not used"
            warnings.warn(FileWarning(image.path or "image", note), stacklevel=2)
        with _enough_memory(image.path):
            overlay, pixels, lens = self._overlay(request, image), image.pixels, None
            camera = camera_of(request.camera, width, height, image.path) or image.camera
            camera = camera or Camera.guess(width, height, usual_focal(self.system))
            way = camera.straightening(whole=self.options.keep_distortion)
            if way is not None:
                pixels, inside = way.image(image.pixels)
                overlay = None if overlay is None else way.image(overlay)[0]
                lens, camera = (way, inside, camera), camera.straight(way)
            kept = image.pixels if self.options.keep_distortion else pixels
            return Prepared(
                request=request,
                image=self._shrink(pixels),
                overlay=None if overlay is None else self._shrink(overlay),
                size=(height, width),
                camera=camera,
                path=image.path,
                pixels=kept if self.keep_image else None,
                lens=lens,
            )

    def _overlay(self, request: Request, image: DecodedImage) -> npt.NDArray[Any] | None:
        if request.overlay is None:
            return None
        try:
            return self.system.overlay_kind.read(request.overlay, image.pixels)
        except ImageError as error:
            what = self.system.overlay_kind.what
            raise ImageError(f"{image.path or 'image in memory'}: its {what} {error}") from None

    def _shrink(self, pixels: npt.NDArray[Any]) -> Array:
        """(H, W, C) to (1, C, h, w) at network size; for windows at its own."""
        image = pixels.transpose(2, 0, 1)[None]
        return to_network_size(self.system, image) if self.options.window is None else image

    def run(self, batch: list[tuple[Key, Prepared]]) -> Iterator[tuple[Key, Outcome]]:
        """Images of one network size to their results."""
        return self.results(batch, self.infer(batch))

    def own_sentences(self, batch: Sequence[tuple[Any, Prepared]]) -> bool:
        """Whether each image of the batch has a sentence of its own."""
        words = [prepared.request.text for _, prepared in batch]
        return self.each_its_words and all(one is not None and one.feature is None for one in words)

    def results(self, batch: list[tuple[Key, Prepared]], output: DepthOutput) -> Iterator[tuple[Key, Outcome]]:
        """Depth at network size to results at image size, made one by one as the caller takes them."""
        finite = all_finite(output.depth)
        for index, (key, prepared) in enumerate(batch):
            try:
                with _enough_memory(prepared.path):
                    result = self._result(prepared, output, index) if finite[index] else self._not_finite(prepared)
            except LangdepthError as error:
                result = error
            yield key, result

    def infer(self, batch: Sequence[tuple[Any, Prepared]]) -> DepthOutput:
        """Images of one network size through the system; what a result is made of, at network size, on the CPU."""
        named = first_few([prepared.path or "image in memory" for _, prepared in batch])
        with _enough_memory(named):
            return self._infer(batch)

    def _infer(self, batch: Sequence[tuple[Any, Prepared]]) -> DepthOutput:
        options, requests = self.options, [prepared.request for _, prepared in batch]
        network = self.network
        overlays = [prepared.overlay for _, prepared in batch if prepared.overlay is not None]
        views = Views(
            image=network.as_input(np.concatenate([prepared.image for _, prepared in batch])),
            text=batch_of(network, [request.text for request in requests]),
            scene=[request.scene for request in requests if request.scene is not None] or None,  # of all or of none
            overlay=network.as_input(np.concatenate(overlays)) if overlays else None,
            focal=network.as_input(relative_focals([prepared.camera for _, prepared in batch])),
        )
        with network.inference(options.dtype):
            if self.sampling is not None:
                output = self.sampling(network, views.image, views.text)
            elif isinstance(network, HasMembers):
                output = infer(network, **vars(views), flip=options.flip, window=options.window, stride=options.stride)
            elif options.window is None:
                output = views.forward(network, flip=options.flip)
            else:
                output = views.through_windows(network, options.window, options.stride, flip=options.flip)
            found: dict[str, Any] = {}
            for name in ("depth", "scene_probs", "std", "sigma"):
                maps = getattr(output, name)
                found[name] = None if maps is None else to_numpy(as_float32(maps))
            return DepthOutput(**found)

    def _sky(self, prepared: Prepared, depth: Array, scenes: dict[str, float] | None) -> Mask | None:
        """Where an image shows the sky, (h, w) of any size; None where it is not looked for."""
        kind = self.options.sky
        if kind == "keep" or (kind == "auto" and not is_outdoors(prepared.request.scene, scenes)):
            return None
        image = to_numpy(prepared.image)[0].transpose(1, 2, 0)
        if image.dtype != np.uint8:
            image = np.rint(image * 255).astype(np.uint8)
        return sky_of(image, depth)

    def _result(self, prepared: Prepared, output: DepthOutput, index: int) -> DepthResult:
        request, camera = prepared.request, prepared.camera
        probs = None
        if output.scene_probs is not None:
            probs = dict(zip(self.system.scenes, output.scene_probs[index].tolist(), strict=True))
        sky, hidden = self._sky(prepared, output.depth[index, 0], probs), None
        if sky is not None and sky.any():
            hidden = resized_map(sky[None, None].astype(np.float32), prepared.size, "bilinear")[0, 0] > 0.5

        def own(maps: Array) -> npt.NDArray[np.float32]:
            enlarged: npt.NDArray[np.float32] = resized_map(
                maps[index : index + 1], prepared.size, self.system.input_spec.enlarge
            )[0, 0]
            if hidden is not None:
                enlarged = np.where(hidden, np.float32(0), enlarged)
            if prepared.lens is None:
                return enlarged
            way, inside, _ = prepared.lens
            straight = np.where(inside, enlarged, np.float32(0))
            if not self.options.keep_distortion:
                return straight
            return way.bent(straight, inverse=self.system.scale_kind == "disparity")

        if prepared.lens is not None and self.options.keep_distortion:
            camera = prepared.lens[2]
        facts = {
            "path": prepared.path,
            "text": None if request.text is None else request.text.label,
            "scene": request.scene,
            "network_size": None if isinstance(self.system, HasMembers) else list(prepared.image.shape[-2:]),
            **{name: getattr(self.options, name) for name in ("flip", "window", "stride", "dtype", "keep_distortion")},
            "sampling": None if self.sampling is None else asdict(self.sampling),
            "sky": None if sky is None else round(float(sky.mean()), 4),
        }
        return result_of(
            self.system,
            own(output.depth),
            facts,
            camera=camera,
            scene_probs=probs,
            image=prepared.pixels,
            std=None if output.std is None else own(output.std),
            sigma=None if output.sigma is None else own(output.sigma),
        )

    def _not_finite(self, prepared: Prepared) -> LangdepthError:
        return LangdepthError(
            f"{prepared.path or 'image in memory'}: '{self.system.name}' {not_finite(self.options.dtype)}"
        )


def _options(options: dict[str, Any]) -> PredictOptions:
    known = [field.name for field in fields(PredictOptions)]
    unknown = next((name for name in options if name not in known), None)
    if unknown is not None:
        raise UsageError(f"unknown option '{unknown}': {nearest(unknown, known)}")
    return PredictOptions(**{name: value for name, value in options.items() if value is not None})


def _sampling(system: Predicts, options: PredictOptions) -> Sampling | None:
    if options.samples is None:
        return None
    require(system, Imagines)
    spread, seed = 0.5 if options.spread is None else options.spread, options.seed or 0
    return Sampling(samples=options.samples, spread=spread, seed=seed)


def camera_of(option: CameraOption, width: int, height: int, path: str) -> Camera | None:
    """The camera that an option states, of an image of that size. Raises UsageError for one that cannot be."""
    if option is None:
        return None
    try:
        camera = _made(option, width, height) if callable(option) else option
        if not isinstance(camera, Camera):
            raise UsageError(f"camera: expected a Camera, or a function (width, height) that gives one, got {camera!r}")
        fitted = camera.fitted(width, height)
        if not isinstance(option, CameraFile):  # which has done it
            fitted.require_view()
        return fitted
    except UsageError as error:
        raise UsageError(f"{path or 'image in memory'}: {error}") from None


def _made(function: Callable[[int, int], Camera], width: int, height: int) -> Camera:
    try:
        return function(width, height)
    except LangdepthError:
        raise
    except Exception as error:
        raise UsageError(f"camera: the function of (width, height) failed: {first_line(error)}") from error


def result_of(system: Predicts, depth: npt.NDArray[np.float32], facts: dict[str, Any], **fields: Any) -> DepthResult:
    """A system's depth (H, W) as a result; ``facts``: of its provenance, beside those about the weights."""
    weights = {key: system.provenance.get(key) for key in ("weights", "source", "licence", "sha256")}
    members = {"members": system.provenance["members"]} if isinstance(system, HasMembers) else {}
    return DepthResult(
        depth=depth,
        valid=depth > 0,
        system=system.name,
        unit="metre" if system.scale_kind == "metric" else "relative",
        scale_kind=system.scale_kind,
        provenance={"langdepth_version": __version__, "weights": weights, **members, **facts},
        **fields,
    )
