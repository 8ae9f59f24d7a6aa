"""What ``langdepth.load`` and ``langdepth.predict`` are: systems by name, file or hub id."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from langdepth.prediction.predictor import predict_images
from langdepth.prediction.results import DepthResult
from langdepth.records import Runtime
from langdepth.runtimes.opening import load
from langdepth.scaling.scale import in_metres
from langdepth.systems.contract import Predicts
from langdepth.utils.arguments import checked
from langdepth.weights.stamps import system_stamp

__all__ = ["load", "predict"]


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
    if isinstance(system, str | Path | Sequence):
        options.setdefault("device", "auto")
        names = (str(system),) if isinstance(system, str | Path) else tuple(map(str, system))
        how = (runtime, str(options["device"]), str(options.get("dtype") or "float32"))
        system = _loaded(names, *how, tuple(map(system_stamp, names)))
    text = options.get("text")
    if system.scale_kind == "metric" or text is None:
        return predict_images(system, images, **options)
    return in_metres(predict_images(system, images, **options | {"text": None}), text)


@lru_cache(maxsize=2)
def _loaded(names: tuple[str, ...], runtime: Runtime, device: str, dtype: str, stamps: tuple[object, ...]) -> Predicts:
    """``stamps`` make another file of the same name, and one that was written again, a new entry."""
    return load(names, runtime=runtime, device=device, dtype=dtype)
