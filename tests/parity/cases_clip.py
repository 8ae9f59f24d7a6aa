"""clip_rn50*, clip_vit_b16*: tokens, text features, dense features and the pyramid of CLIP itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from langdepth.backbones.clip import ClipImageTower
from langdepth.backbones.clip_weights import ClipWeights
from langdepth.text.clip_text import ClipTextTower, tokenize
from tests.parity.runner import Case, Compared, Tolerance, subsampled

CLOSE = Tolerance(rtol=1e-4, atol=1e-5)
DISTANCES = ("giant", "extremely close", "close", "not in distance", "a little remote", "far", "unseen")
SENTENCES = {
    "": [f"This object is {distance}" for distance in DISTANCES],
    "extra_": [
        "a photo of a cat.",
        "It's  12 o'clock,  isn't it?",
        "Ünïcödé naïve café — “quotes” &amp; &lt;html&gt;",
        "日本語 テキスト 😀",
        "Supercalifragilisticexpialidocious!!! 3.14159",
        "",
        "THIS OBJECT IS EXTREMELY CLOSE",
        " ".join(["very long text"] * 40),
    ],
}


def clip(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """Every array of the file; sizes and what there is follow from its names."""
    assert weights is not None
    architecture = "RN50" if "visual.attnpool.c_proj.weight" in weights else "ViT-B-16"
    model = ClipWeights(architecture, True, weights, case, "")
    with torch.no_grad():
        yield from _text(arrays, model)
        yield from _images(arrays, model)


def _text(arrays: dict[str, np.ndarray], model: ClipWeights) -> Compared:
    if "tokens" not in arrays and "extra_tokens" not in arrays:
        return
    tower = ClipTextTower.from_weights(model)
    for prefix, sentences in SENTENCES.items():
        if f"{prefix}tokens" not in arrays:
            continue
        # The features are those of the file's tokens, whatever its sentences are.
        features = tower(torch.from_numpy(arrays[f"{prefix}tokens"]).long())
        yield f"{prefix}tokens", tokenize(sentences), Tolerance()
        yield f"{prefix}text_features_raw", features, CLOSE
        yield f"{prefix}text_features", F.normalize(features, dim=-1), CLOSE


def _images(arrays: dict[str, np.ndarray], model: ClipWeights) -> Compared:
    tower = ClipImageTower(model.architecture, quick_gelu=True, position_resize="linear1d").eval()
    tower.load_state_dict(model.visual())
    for name in [name for name in arrays if name.startswith("image_")]:
        size = name.removeprefix("image_")
        image = torch.from_numpy(arrays[name])
        for base, compute in _computations(tower).items():
            base = base.format(size=size)
            if any(other.startswith(base) for other in arrays):
                for part, value in subsampled(arrays, base, compute(image)):
                    yield part, value, CLOSE


def _computations(tower: ClipImageTower) -> dict[str, Any]:
    """Array name -> what computes it. Dense arrays are (cells, batch, channels), as the official code has them."""

    def dense(mode: Any) -> Any:
        return lambda image: tower(image, mode).flatten(2).permute(2, 0, 1)

    def level(number: int) -> Any:
        return lambda image: tower.pyramid(image)[number - 1]

    levels = {f"down{number}_{{size}}": level(number) for number in (1, 2, 3, 4, 5)}
    modes = {"dense_{size}": dense("stage"), "attnpool_{size}": dense("attnpool")}
    embedding = {"pooled_{size}": lambda image: tower.dense_and_embedding(image)[1]}
    return embedding | modes | levels


CASES = (
    Case("clip_rn50*", clip, "clip_rn50"),
    Case("clip_vit_b16*", clip, "clip_vit_b16"),
)
