"""At the size that its paper feeds, every system sees the image as it is, and its map is enlarged as the authors do it.

The specifications' sections on evaluation and inference say the sizes and the kinds of enlargement.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from langdepth.prediction.results import DepthResult
from langdepth.records import Enlarge
from langdepth.systems import registry
from tests.systems.test_depthclip import with_words

CROPPED, NYU, KITTI = (416, 544), (480, 640), (352, 1216)
CLIP: dict[str, Any] = {"architecture": "RN-small"}
MAPS = {"channels": 32, "pixel_layers": 1, "pixel_hidden": 32, "decoder_layers": 3, "decoder_hidden": 32, "bins": 8}
SCALEDEPTH: dict[str, Any] = {**MAPS, "encoder": "test_convnext"}
WORDEPTH: dict[str, Any] = {"encoder": "swin-mini", "widths": (16, 12, 8), "latent": 8, "text_features": 32}
ALIGNED: Enlarge = "bilinear-aligned"

# system -> options that make it small but leave its sizes alone, the paper's size, how its map is enlarged
PAPERS: dict[str, tuple[dict[str, Any], tuple[int, int], Enlarge]] = {
    "depthclip": (CLIP, CROPPED, ALIGNED),
    "few-shot-clip": (CLIP, CROPPED, ALIGNED),
    "clip-adapter": (CLIP, CROPPED, ALIGNED),
    "clip-coarse-refined": ({**CLIP, "hidden": 16}, CROPPED, ALIGNED),
    "eigen": ({"hidden": 16}, CROPPED, ALIGNED),
    "msa": (CLIP, CROPPED, ALIGNED),
    "cabins": (CLIP, NYU, ALIGNED),
    "cabins-kitti": (CLIP, KITTI, ALIGNED),
    "prompt-clip": (CLIP, NYU, ALIGNED),
    "prompt-clip-kitti": (CLIP, KITTI, ALIGNED),
    "mde-clip": (CLIP, NYU, ALIGNED),
    "mde-clip-unet": (CLIP, NYU, ALIGNED),
    "refine-clip": (CLIP, NYU, ALIGNED),
    "scaledepth-n": (SCALEDEPTH, NYU, "bilinear"),
    "scaledepth-k": (SCALEDEPTH, KITTI, "bilinear"),
    "wordepth-nyu": (WORDEPTH, NYU, "bilinear"),
    "wordepth-kitti": (WORDEPTH, KITTI, "bilinear"),
}


@pytest.mark.parametrize("name", PAPERS)
def test_predict_is_the_authors_inference(name: str) -> None:
    options, size, enlarge = PAPERS[name]
    torch.manual_seed(0)
    system = registry.build(name, options).eval()
    system = with_words(system) if hasattr(system, "word_bins") else system
    assert (system.input_spec.network_size(*size), system.input_spec.enlarge) == (size, enlarge)
    photo = torch.randint(0, 256, (*size, 3), dtype=torch.uint8)
    with torch.no_grad():
        depth = system(photo.permute(2, 0, 1)[None] / 255).depth
        expected = F.interpolate(depth, size, mode="bilinear", align_corners=enlarge == ALIGNED)[0, 0]
    result = system.predict(photo.numpy())
    assert isinstance(result, DepthResult)
    torch.testing.assert_close(torch.from_numpy(result.depth), expected, rtol=1e-4, atol=1e-5)
