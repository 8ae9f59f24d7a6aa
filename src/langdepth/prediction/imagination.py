"""Depth of scenes that exist in words only.

Data flow: seed -> noise at the network's size, one draw per sample; with the words -> Imagines.imagine -> DepthResult.
No image encoder runs.
"""

from __future__ import annotations

from typing import Any

from langdepth.errors import LangdepthError, UsageError
from langdepth.prediction.arrays import all_finite, as_float32, joined, not_finite, to_numpy
from langdepth.prediction.pipeline import result_of
from langdepth.prediction.results import DepthResult
from langdepth.prediction.sampling import check_drawn, generator_of, in_parts
from langdepth.systems.contract import Imagines, Predicts, require
from langdepth.utils.arguments import checked

__all__ = ["imagine"]


@checked
def imagine(
    system: Predicts,
    prompt: str,
    *,
    samples: int = 4,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    device: Any = None,
) -> list[DepthResult]:
    """``samples`` different depth maps of scenes that the sentence ``prompt`` describes.

    ``size``: (height, width) in pixels, which the system may want to be multiples of something; None is the system's
    own for a 4:3 image. The same ``seed`` gives the same maps, whatever the prompts before it; two prompts with one
    seed share their random numbers. ``device``: as in ``langdepth.prediction.predictor.predict_images``. The results
    have no camera and no image.

    Raises UsageError for a system that cannot (naming those that can), an empty prompt and a size or number that is not
    possible, LangdepthError when depth is not finite.
    """
    if samples < 1:
        raise UsageError(f"samples must be at least 1, got {samples}")
    if not prompt.strip():
        raise UsageError("the prompt is empty; describe a scene, for example 'a bedroom with a desk'")
    require(system, Imagines)
    height, width = size or system.input_spec.network_size(480, 640)
    check_drawn(samples, height, width)
    network = require(system.for_inference(device), Imagines)
    with network.inference():
        noise = network.draw_noise(samples, height, width, generator_of(seed))
        parts = in_parts(noise, height, width)
        depth = to_numpy(joined([as_float32(network.imagine([prompt] * len(part), part).depth) for part in parts]))
    if not all(all_finite(depth)):
        raise LangdepthError(f"'{system.name}' {not_finite()}")
    return [
        result_of(system, sample, {"text": prompt, "seed": seed, "sample": number})
        for number, sample in enumerate(depth[:, 0])
    ]
