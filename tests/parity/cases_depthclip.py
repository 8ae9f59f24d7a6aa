"""DepthCLIP, and its re-implementation in the repository of the CLIP adapters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from langdepth.systems import registry
from tests.parity.runner import Case, Compared, Tolerance, subsampled

TEXT = Tolerance(rtol=1e-4, atol=1e-5)


def official(name: str, weights: dict[str, Tensor] | None, text: Tensor | None = None, **options: Any) -> Any:
    """The system with the case's checkpoint, as ``langdepth convert`` fills it, for images normalised already.

    ``text``: the words' features (K, D), for checkpoints without.
    """
    assert weights is not None
    plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "reference_exact": True}
    system: Any = registry.build(name, plain | options)
    if text is not None:
        system.word_bins.text.copy_(text)
    tensors, report = system.convert_official(weights)
    assert report["missing"] == []
    system.load_state_dict(tensors)
    return system.eval()


def images(arrays: dict[str, np.ndarray], kind: str = "image") -> Iterator[tuple[str, Tensor]]:
    """The input images of a file, (B, 3, H, W), with what stands behind ``kind`` in their names."""
    for name, array in arrays.items():
        if name.startswith(kind) and array.ndim == 4 and array.shape[1] == 3:
            yield name.removeprefix(kind), torch.from_numpy(arrays[name])


@torch.no_grad()
def words_depth(
    system: Any, arrays: dict[str, np.ndarray], image: Tensor, tag: str, logits: Tolerance, depth: Tolerance
) -> Compared:
    """Everything on the way from one image to its depth."""
    found = system.compare(system.dense(image))
    mirrored = system.compare(system.dense(image.flip(-1))).depth.flip(-1)
    enlarged = (system(image).depth + system(image.flip(-1)).depth.flip(-1)) / 2
    yield f"logits{tag}", found.logits, logits
    yield f"weights{tag}", found.probs, depth
    yield f"depth{tag}", found.depth, depth
    yield f"depth_flip{tag}", mirrored, depth
    yield f"depth_avg{tag}", (found.depth + mirrored) / 2, depth
    for name, value in subsampled(arrays, f"depth_upsampled{tag}", enlarged):
        yield name, value, depth


def depthclip(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """DepthCLIP."""
    system = official("depthclip", weights)
    yield "text_features", system.word_bins.text[0].T, TEXT
    for tag, image in images(arrays):
        yield from words_depth(system, arrays, image, tag, Tolerance(atol=5e-4), Tolerance(atol=5e-5))


def depth_clip(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """The zero-shot model of the adapters' repository, RN50 or ViT-B/16."""
    system = official("depthclip-vit" if "vit" in case else "depthclip", weights)
    yield "text_features", system.word_bins.text[0].T, TEXT
    for tag, image in images(arrays):
        yield from words_depth(system, arrays, image, tag, Tolerance(atol=1e-3), Tolerance(atol=1e-4))


CASES = (
    Case("depthclip*", depthclip, "depthclip"),
    Case("depth_clip_rn50*", depth_clip, "depth_clip_rn50"),
    Case("depth_clip_vit_b16*", depth_clip, "depth_clip_vit_b16"),
)
