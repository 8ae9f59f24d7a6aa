"""Depth of images: one, a list, or a stream of them.

Data flow: sources -> ``read_image`` -> uint8 at the system's network size (in threads) -> batches of one network size
-> system -> depth at network size -> each image's own size -> ``DepthResult``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

from langdepth.errors import LangdepthError, UsageError
from langdepth.prediction.arrays import is_tensor
from langdepth.prediction.pipeline import CameraOption, Key, Outcome, Predictor, Request
from langdepth.prediction.results import DepthResult
from langdepth.prediction.stream import run_ahead
from langdepth.prediction.words import words_per_image
from langdepth.systems.contract import Predicts
from langdepth.text.scenes import scene_index
from langdepth.utils.arguments import checked

__all__ = ["predict_images", "predict_stream"]


@checked
def predict_images(
    system: Predicts,
    images: Any,
    *,
    text: Any = None,
    scene: str | Sequence[str] | None = None,
    camera: CameraOption | Sequence[CameraOption] = None,
    overlay: Any = None,
    **options: Any,
) -> DepthResult | list[DepthResult]:
    """Depth of one image (one result) or of several (a list in the same order).

    Text, scene, camera and overlay hold for all images, or are lists with one for each.

    Args:
        system: A torch system is put in eval mode.
        images: Anything ``utils.images.read_image`` takes (path, bytes, PIL image, NumPy array, tensor (3, H, W)), a
            list of these, or a tensor (B, 3, H, W).
        text: A sentence about the image, or its CLIP feature: (D,) or (N, D), see ``words.words_per_image``.
        scene: A name of ``system.scenes``.
        camera: Known intrinsics, which go before those that EXIF states.
        overlay: For systems that take one, what ``system.overlay_kind.read`` takes: the image with masks drawn over it
            or a file of masks, or a relative map; as many as images.
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
    predictor = Predictor(system, options, keep_image=True)
    requests = [
        Request(
            source=source,
            text=words,
            scene=known_scene(system, place),
            camera=lens,
            overlay=_needed_overlay(system, second),
        )
        for source, words, place, lens, second in zip(sources, texts, scenes, cameras, overlays, strict=True)
    ]
    results: dict[int, DepthResult] = {}
    # One image needs no threads: they would only add to the time until it is there.
    stream = predictor.run([(0, predictor.prepare(requests[0]))]) if one else None
    for index, result in stream or run_ahead(predictor, enumerate(requests)):
        if isinstance(result, LangdepthError):
            raise result
        results[index] = result
    return results[0] if one else [results[index] for index in range(len(sources))]


@checked
def predict_stream(
    system: Predicts,
    paths: Iterable[Key],
    *,
    read: Callable[[Key], Any] = lambda path: path,
    text: Any = None,
    scene: str | None = None,
    camera: CameraOption = None,
    overlay: Callable[[Key], Any] = lambda path: None,
    workers: int | None = None,
    keep_image: bool = False,
    **options: Any,
) -> Generator[tuple[Key, Outcome]]:
    """Depth of any number of images in bounded memory: yields (path, result), or (path, error) for an unusable one.

    Images are decoded ahead in threads and go through the system in batches of one network size, on a CPU in several
    threads; so results come in nearly, not exactly, the order of ``paths``. A result equals that of ``predict_images``.

    Args:
        system: A torch system is put in eval mode.
        paths: One for each image, hashable.
        read: Turns a path into what ``read_image`` takes.
        text: Words about all images, or a function that gives the words about each.
        scene: A name of ``system.scenes``.
        camera: Known intrinsics, which go before those that EXIF states.
        overlay: Turns a path into what ``system.overlay_kind.read`` takes, for systems that need one.
        workers: Threads that decode; None for one per core, at most 8.
        keep_image: Whether results hold the image.
        **options: Fields of ``PredictOptions``.

    Raises:
        UsageError: For options that do not fit.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"workers must be at least 1, got {workers}")
    predictor = Predictor(system, options, keep_image=keep_image, each_its_words=callable(text))
    scene = known_scene(system, scene)
    if callable(text) and not system.text_per_image:
        raise UsageError(f"the system '{system.name}' takes no captions of images; leave them out")
    shared = None if callable(text) else words_per_image(system, text, 1)[0]
    requests = (
        (
            path,
            Request(
                source=read(path),
                text=text(path) if callable(text) else shared,
                scene=scene,
                camera=camera,
                overlay=_needed_overlay(system, overlay(path)),
            ),
        )
        for path in paths
    )
    return run_ahead(predictor, requests, workers)


def _is_one(images: Any) -> bool:
    """Whether it is one image, not a list or a batch of them."""
    return not isinstance(images, list | tuple) and not (is_tensor(images) and images.ndim == 4)


def _per_image(name: str, value: Any, count: int) -> list[Any]:
    """One value per image from one for all or a sequence."""
    if not isinstance(value, list | tuple):
        return [value] * count
    if len(value) != count:
        raise UsageError(f"{name}: {len(value)} given for {count} images; give one for all, or one per image")
    return list(value)


def known_scene(system: Predicts, name: str | None) -> str | None:
    """The scene as the system calls it. Raises UsageError for one that it does not know."""
    if name is None:
        return None
    if not system.scenes:
        raise UsageError(f"the system '{system.name}' takes no scene; leave it out")
    return system.scenes[scene_index(name, system.scenes)]


def _needed_overlay(system: Predicts, source: Any) -> Any:
    if source is not None and not system.takes_overlay:
        raise UsageError(f"the system '{system.name}' takes no overlay; leave it out")
    if source is None and system.takes_overlay:
        kind = system.overlay_kind
        raise UsageError(f"the system '{system.name}' needs {kind.one} beside every image; {kind.advice}")
    return source
