"""What ``langdepth.load``, ``predict`` and ``predict_video`` are: systems by name, file or hub id."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langdepth.errors import LangdepthError
from langdepth.prediction.pipeline import CameraOption
from langdepth.prediction.predictor import predict_images
from langdepth.prediction.results import DepthResult
from langdepth.prediction.video.sources import ClipOptions, SteadyKind
from langdepth.records import Runtime
from langdepth.runtimes.opening import load
from langdepth.scaling.scale import in_metres
from langdepth.systems.contract import Predicts
from langdepth.utils.arguments import checked
from langdepth.weights.stamps import system_stamp

if TYPE_CHECKING:
    from langdepth.prediction.video.predicting import FrameResult

__all__ = ["load", "predict", "predict_video"]


@checked
def predict(
    images: Any,
    system: str | Path | Sequence[str | Path] | Predicts = "tiny",
    *,
    runtime: Runtime = "auto",
    **options: Any,
) -> DepthResult | list[DepthResult]:
    """Depth of one image or many.

    Args:
        images: See ``langdepth.prediction.predictor.predict_images``, which also takes the ``options``.
        system: A registry name, weights file or hub id, or a list of them, whose mean is taken (see
            ``langdepth.load``; loaded once, then kept), or a loaded system.
        runtime: What computes a system that is not loaded yet, see ``langdepth.load``.
        **options: ``device`` is "auto" unless given. With ``text``, sentences, the depth of a system that gives
            relative depth is brought to metres, as ``langdepth.scale`` does it.
    """
    system = _opened(system, runtime, options)
    text = options.get("text")
    if system.scale_kind == "metric" or text is None:
        return predict_images(system, images, **options)
    return in_metres(predict_images(system, images, **options | {"text": None}), text)


@checked
def predict_video(
    source: str | Path,
    system: str | Path | Sequence[str | Path] | Predicts = "tiny",
    *,
    runtime: Runtime = "auto",
    start: float | None = None,
    end: float | None = None,
    fps: float | None = None,
    steady: SteadyKind = "motion",
    text: str | None = None,
    scene: str | None = None,
    camera: CameraOption = None,
    **options: Any,
) -> Generator[FrameResult]:
    """Depth of a clip, frame after frame in bounded memory: yields (number, time in seconds, ``DepthResult``).

    Needs PyAV, ``pip install 'langdepth[video]'``, but for numbered images.

    Args:
        source: A video file, numbered images ("frames_%04d.png"), "webcam:0", or a stream ("rtsp://...", "http://...").
        system: As ``predict`` takes it.
        runtime: What computes a system that is not loaded yet.
        start: Seconds from the beginning at which to start.
        end: Seconds at which to end.
        fps: At most so many frames per second; of numbered images, how fast they follow each other.
        steady: Against flicker, see ``langdepth.prediction.video.steady``: "motion", "scale" or "off".
        text: A sentence about the whole clip.
        scene: A name of ``system.scenes``.
        camera: Known intrinsics, the same for all frames.
        **options: Fields of ``PredictOptions``.

    Raises:
        UsageError: For options that do not fit.
        LangdepthError: The clip cannot be read, or is cut or damaged; what could be read has come before.
    """
    from langdepth.prediction.video.predicting import predict_frames, steady_of
    from langdepth.prediction.video.reading import open_clip
    from langdepth.scaling.scale import scaled

    system = _opened(system, runtime, options)
    metres = None
    if system.scale_kind != "metric" and text is not None:
        metres, text = partial(scaled, text=text), None
    clip = open_clip(str(source), ClipOptions(start=start, end=end, fps=fps, steady=steady))
    how = {"text": text, "scene": scene, "camera": camera, **options}

    def frames() -> Generator[FrameResult]:
        with closing(clip), closing(clip.frames()) as decoded:
            yield from predict_frames(system, clip, decoded, steady=steady_of(clip), metres=metres, **how)
        for problem in clip.problems:
            raise LangdepthError(problem)

    return frames()


def _opened(system: Any, runtime: Runtime, options: dict[str, Any]) -> Predicts:
    """A loaded system; one that is named is loaded, and ``options`` say where."""
    if not isinstance(system, str | Path | Sequence):
        loaded: Predicts = system
        return loaded
    options.setdefault("device", "auto")
    names = (str(system),) if isinstance(system, str | Path) else tuple(map(str, system))
    how = (runtime, str(options["device"]), str(options.get("dtype") or "float32"))
    return _loaded(names, *how, tuple(map(system_stamp, names)))


@lru_cache(maxsize=2)
def _loaded(names: tuple[str, ...], runtime: Runtime, device: str, dtype: str, stamps: tuple[object, ...]) -> Predicts:
    """``stamps`` make another file of the same name, and one that was written again, a new entry."""
    return load(names, runtime=runtime, device=device, dtype=dtype)
