"""mde_clip*: cross-attention, its regression head, RefineDepthCLIP; losses and metrics of both repositories."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from langdepth import losses
from langdepth.backbones.clip_weights import ClipWeights
from langdepth.evaluation import protocols
from langdepth.parts.upsample import resize_aligned
from langdepth.systems.mde_clip.model import MdeLosses, image_losses
from langdepth.text.clip_text import ClipTextTower, tokenize
from langdepth.text.prompts import PromptSet
from tests.parity import unused_losses
from tests.parity.cases_depthclip import official
from tests.parity.cases_functions import ADAPTERS, StandIn, image_means
from tests.parity.keyed_weights import state_dict
from tests.parity.runner import DATA, Case, Compared, Reference, Tolerance, outputs_of, subsampled

CLOSE = Tolerance(rtol_of_max=1e-5)
DEPTH, SHARP_DEPTH = Tolerance(atol=1e-4), Tolerance(atol=1e-5)
PROBS = Tolerance(rtol_of_max=1e-5, atol=6e-6)  # two float32 runs of the published code may differ by 2 x 3.1e-6
EXACT, RELATIVE = Tolerance(), Tolerance(rtol=1e-5)
SENTENCES = [f"This object is {word}" for word in PromptSet().words]
NYU_ORDER = ("abs_diff", "delta1", "delta2", "delta3", "abs_rel", "log10", "rmse")
KITTI_ORDER = ("abs_diff", "abs_rel", "sq_rel", "delta1", "delta2", "delta3", "rmse", "rmse_log")


def part(value: Tensor, channels: int = 16) -> Tensor:
    """The sub-sampling of the golden files, (B, C, H, W)."""
    steps = [max(1, side // wanted) for side, wanted in zip(value.shape[1:], (channels, 15, 20), strict=True)]
    return value[:, :: steps[0], :: steps[1], :: steps[2]]


def _words(arrays: dict[str, np.ndarray]) -> Compared:
    yield "token_ids", tokenize(SENTENCES), EXACT
    if "text_features_unit" in arrays:
        weights = ClipWeights("RN50", True, state_dict(DATA / "mde_clip_text.keys.json"), "keys", "")
        features = ClipTextTower.from_weights(weights)(torch.from_numpy(arrays["token_ids"]).long())
        yield "text_features_unit", F.normalize(features, dim=-1).T, CLOSE


def _decoder(system: Any, image: Tensor) -> Generator[tuple[str, Any, Tolerance], None, Tensor]:
    """The trunk, every level's attention and decoder; returns the decoder's map."""
    maps, text = system.maps(image), system.words(len(image))[0]
    for level, features in enumerate(maps, start=1):
        yield f"feature_map{level}", part(features), CLOSE
    keys, offsets, _ = system.decoder.attention[0].words(text)
    weights = (maps[-1].flatten(2).mT @ keys.mT + offsets).softmax(-1)
    yield "attention1_weights", weights, CLOSE
    levels = {f"attention{level}": module for level, module in enumerate(system.decoder.attention, start=1)}
    found = outputs_of(levels | {f"decoder{level}": up for level, up in enumerate(system.decoder.up, start=1)})
    decoded = system.decoder(maps, text)
    for name, value in found.items():
        yield name, part(value), CLOSE
    return decoded


@torch.no_grad()
def mde_clip(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """The published system, part by part and as a whole."""
    image = torch.from_numpy(arrays["image"])
    system = official("mde-clip", weights, torch.from_numpy(arrays["text_features"]).T)
    yield from _words(arrays)
    decoded = yield from _decoder(system, image)
    transformer = system.head.transformer
    yield "mvit_tokens", transformer.tokens(decoded).transpose(0, 1)[::8, :, ::4], CLOSE
    widths, maps = transformer(decoded)
    yield "bin_widths_normed", widths, CLOSE
    yield "range_attention_maps", part(maps), CLOSE
    found = system.head(decoded)
    yield "bin_probs", part(found.probs, 25), PROBS
    yield "bin_edges", found.edges, CLOSE
    for name, value in subsampled(arrays, "depth", system(image).depth):
        yield name, value, DEPTH


def _whole(depth: Tensor, tolerance: Tolerance) -> Compared:
    yield "depth", depth[..., ::2, ::2], tolerance
    yield "depth_mean", depth.mean()[None], tolerance
    yield "depth_std", depth.std()[None], tolerance


@torch.no_grad()
def mde_clip_unet(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """The regression head."""
    image = torch.from_numpy(arrays["image"])
    system = official("mde-clip-unet", weights, torch.from_numpy(arrays["text_features"]).T)
    yield from _words(arrays)
    decoded = yield from _decoder(system, image)
    yield "logit", part(system.head(decoded)), CLOSE
    yield from _whole(system(image).depth, SHARP_DEPTH)


@torch.no_grad()
def mde_clip_refine(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """RefineDepthCLIP at the file's temperature; the words come from the checkpoint's own text tower."""
    image = torch.from_numpy(arrays["image"])
    system = official("refine-clip", weights, logit_scale=100 / float(arrays["temperature"][0]))
    yield from _words(arrays)
    matrix, _ = system.words(len(image))
    yield "text_features", matrix[0].T, CLOSE
    yield "prompts1", system.adapters[0](matrix[0]).T, CLOSE
    found = outputs_of({f"conv_block{level}": block for level, block in enumerate(system.blocks)})
    for level, value in enumerate(system.similarities(image, matrix), start=1):
        yield f"similarity{level}", part(value), CLOSE
    depth = system(image).depth
    for name, value in found.items():
        yield name, part(value), CLOSE
    yield from _whole(depth, SHARP_DEPTH)


def mde_clip_losses(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """Losses of both repositories, and their metrics by what ``langdepth evaluate`` does."""
    target, prediction, edges = (torch.from_numpy(arrays[name]) for name in ("gt", "pred", "bin_edges"))
    upsampled = resize_aligned(prediction, target.shape[-2:])
    settings = MdeLosses()
    each = image_losses(upsampled, target, target > 0)
    total = each["silog"] + settings.l1 * each["l1"] + settings.ssim * each["ssim"]
    yield "criterion_per_image", torch.stack([total, each["silog"], each["l1"], each["ssim"]], 1), RELATIVE
    quarter = target[..., ::4, ::4]
    chamfer = losses.bin_chamfer((edges[:, 1:] + edges[:, :-1]) / 2, quarter, quarter >= 1e-3)
    yield "base_loss", total.mean()[None], RELATIVE
    yield "chamfer_quarter", chamfer[None], RELATIVE
    yield "total_loss", (total.mean() + settings.chamfer * chamfer)[None], RELATIVE
    known = unused_losses.known_depth(target)
    scalars = {
        "silog_refine": losses.silog(upsampled, target, target > 0, 0.5, 1.0, root=False),
        "silog_adabins": losses.silog(upsampled, target, known),
        "berhu": unused_losses.berhu(upsampled, target, known),
        "scale_invariant": losses.silog(upsampled, target, known),
        "imgrad_loss": unused_losses.sobel_gradient(upsampled, target),
        "imgrad_loss_masked": unused_losses.sobel_gradient(upsampled, target, known, outside_weight=0.1),
    }
    for name, value in scalars.items():
        yield name, value[None], RELATIVE
    for name, slopes in zip(("imgrad_y", "imgrad_x"), unused_losses.sobel(target[..., :64, :64]), strict=True):
        yield name, slopes, CLOSE
    yield from _metrics(prediction, upsampled, target)


def _metrics(prediction: Tensor, upsampled: Tensor, target: Tensor) -> Compared:
    nyu = protocols.get("mde-clip-reference").override(flip=False)
    cropped = nyu.override(crop="eigen-nyu-46")
    rules = {"nyu_metrics": nyu, "nyu_metrics_crop": cropped}
    rules |= {"nyu_metrics_refine_nocrop": nyu, "nyu_metrics_refine_crop": cropped}
    for name, protocol in rules.items():
        means = image_means(StandIn(prediction, prediction), target, protocol)
        yield name, torch.stack([means[metric] for metric in NYU_ORDER]), RELATIVE
    street, far = (values[..., :352:2, ::2] for values in (7.5 * upsampled, 8 * target))
    kitti = nyu.override(max_depth=80.0, crop="garg")
    rules = {"kitti_metrics": kitti, "kitti_metrics_nocrop": kitti.override(crop="none")}
    for name, protocol in (rules | {"kitti_metrics_cap50": kitti.override(max_depth=50.0)}).items():
        means = image_means(StandIn(street, street), far, protocol)
        yield name, torch.stack([means[metric] for metric in KITTI_ORDER]), RELATIVE


CASES = (
    Case("mde_clip_losses*", mde_clip_losses),
    Case("mde_clip_unet*", mde_clip_unet, "mde_clip_unet", slow=True),
    Case("mde_clip_refine*", mde_clip_refine, "mde_clip_refine", slow=True),
    Case("mde_clip*", mde_clip, "mde_clip_small", slow=True),
)
REFERENCES = {
    "mde-clip-reference": Reference("a40e3e3a611c", "mde_clip_losses", ADAPTERS | {"mask_prediction": True}),
}
