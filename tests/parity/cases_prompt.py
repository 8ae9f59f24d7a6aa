"""Learned prompts (Auty & Mikolajczyk): every variant, its losses and metrics."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from langdepth import losses
from langdepth.evaluation import protocols
from langdepth.evaluation.accumulator import DepthMetrics
from langdepth.evaluation.batch import evaluate_batch
from langdepth.parts.upsample import resize_aligned
from langdepth.text.learned_prompts import PromptTokenizer, count_added
from tests.parity.cases_depthclip import images, official
from tests.parity.cases_functions import ADAPTERS, StandIn, samples_of
from tests.parity.runner import Case, Compared, Reference, Tolerance

CLOSE = Tolerance(rtol_of_max=2e-5)
PROBS = Tolerance(rtol_of_max=2e-5, atol=5e-6)  # float32 against float64 in the published code: 5e-6
EXACT = Tolerance()
# What the first of these that a case's name starts with differs from the published row in.
VARIANTS: dict[str, dict[str, Any]] = {
    "prompt_learned7": {},
    "prompt_4o4d_256_kitti": {
        "template": "4o4d", "object_word": "learned", "depth_words": "learned-256", "bins": "log80-256",
    },
    "prompt_depth7": {"depth_words": "depth"},
    "prompt_size7": {"depth_words": "size", "bins": "log-7"},
    "prompt_colour7": {"depth_words": "colour", "bins": "log80-7"},
    "prompt_depthclip_words": {"template": "paper", "depth_words": "paper", "bins": "paper"},
    "prompt_1o2d_20": {
        "template": "1o2d", "object_word": "learned", "depth_words": "learned-20", "bins": "log-20",
    },
    "prompt_feature_decoder": {"template": "4o4d", "object_word": "learned", "feature_stage": "decoder-4"},
    "prompt_logit_decoder": {"template": "1o1d", "object_word": "learned", "logit_stage": "decoder-5"},
    "prompt_feature_interp": {"feature_stage": "half"},
    "prompt_logit_upsample4": {"logit_stage": "upsample-4"},
    "prompt_image_dependent": {"image_dependent": True},
    "prompt_patch_object": {"object_word": "patch"},
    "prompt_vit": {"architecture": "ViT-B-32"},
}  # fmt: skip


@torch.no_grad()
def prompt(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """Everything on the way from one batch of images to its depth."""
    options = next(options for name, options in VARIANTS.items() if case.startswith(name))
    system = official("prompt-clip", weights, **options)
    sentences = system.sentences(system.config.prompts)
    yield "token_ids", PromptTokenizer(count_added(sentences))(sentences), EXACT
    yield "bin_centres", system.word_bins.bin_centers[0], Tolerance(rtol=1e-6)
    for _, image in images(arrays):
        photo = image.shape[-2:]
        features = system.dense(image)
        flat = features.flatten(2).mT
        yield "image_features", flat[:, :: max(1, flat.shape[1] // 20), ::64], CLOSE
        text, centers = system.words(len(image))
        if system.image_words:
            text = system.encode(features)
        official_text = text.mT / math.sqrt(text.shape[-2])
        yield "text_features", official_text if system.image_words else official_text[0], CLOSE
        cells = system.feature_stage(system.word_bins.cells(features), photo)
        logits_in = system.word_bins.logits(cells, text)
        yield "logits_in", _sampled(logits_in), CLOSE
        found = system.compare_with(features, text, centers, photo)
        yield "logits", _sampled(found.logits), CLOSE
        yield "bin_probs", _sampled(found.probs), PROBS
        yield "depth_low", system(image).depth, CLOSE
        depth = resize_aligned(system(image).depth, photo)
        yield "depth", depth[:, :, ::2, ::2] if depth.numel() > 90000 else depth, CLOSE


def _sampled(maps: Tensor) -> Tensor:
    channels, height, width = maps.shape[1:]
    return maps[:, :: max(1, channels // 32), :: max(1, height // 15), :: max(1, width // 20)]


def losses_metrics(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """Losses of coarse depth maps, and both averages of the metrics under the paper's protocols."""
    for dataset in ("nyu", "kitti"):
        if f"{dataset}_gt" not in arrays:
            continue
        protocol = protocols.get(f"prompt-clip-{dataset}-reference")
        target, stored = (torch.from_numpy(arrays[f"{dataset}_{name}"]) for name in ("gt", "pred"))
        hole = stored == -1
        prediction = resize_aligned(torch.where(hole, 2.0, stored), target.shape[-2:])
        known = target > protocol.min_depth
        near = known & (target <= protocol.max_depth)
        tight = Tolerance(rtol=1e-6)
        yield f"{dataset}_silog_train", losses.silog(prediction, target, known)[None], tight
        yield f"{dataset}_silog_eval", losses.silog(prediction, target, near)[None], tight
        yield f"{dataset}_mse", losses.l2(prediction, target)[None], tight
        if f"{dataset}_bin_edges" in arrays:
            edges = torch.from_numpy(arrays[f"{dataset}_bin_edges"])
            quarter = target[..., ::4, ::4]
            chamfer = losses.bin_chamfer((edges[:, 1:] + edges[:, :-1]) / 2, quarter, quarter > protocol.min_depth)
            yield f"{dataset}_chamfer_quarter", chamfer[None], tight
        # Published: a value that is not a number spreads while the map is enlarged, and then becomes the least depth.
        # The metrics limit nothing; that is done before, to what the network gives.
        low, high = protocol.min_depth, protocol.max_depth
        prepared = resize_aligned(torch.where(hole, math.nan, stored), target.shape[-2:]).nan_to_num(low, high, high)
        rules = protocol.override(frame="stored", clamp_views=False, clamp_prediction=False)
        evaluated = evaluate_batch(StandIn(prepared, prepared.flip(-1)), samples_of(target), rules)
        yield f"{dataset}_pre_mean", evaluated.prediction.mean()[None], tight
        yield f"{dataset}_mask_count", evaluated.valid.flatten(1).sum(1), EXACT
        metrics = DepthMetrics()
        metrics.update(evaluated.prediction, evaluated.target, evaluated.valid)
        found = metrics.compute()
        order = ("abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "delta1", "delta2", "delta3")
        yield f"{dataset}_pixelwise", torch.stack([found[f"pixel_{name}"] for name in order]), tight
        # The published running average of the squared log error has no root.
        published = [found["msle" if name == "rmse_log" else name] for name in order]
        yield f"{dataset}_running", torch.stack(published), tight


_PROMPT_CASES = (
    "prompt_learned7", "prompt_4o4d_256_kitti", "prompt_depth7", "prompt_size7", "prompt_colour7",
    "prompt_depthclip_words", "prompt_1o2d_20", "prompt_feature_decoder", "prompt_logit_decoder",
    "prompt_feature_interp", "prompt_logit_upsample4", "prompt_image_dependent", "prompt_patch_object", "prompt_vit",
)  # fmt: skip
CASES = (
    Case("prompt_losses_metrics*", losses_metrics),
    *(Case(f"{name}*", prompt, name) for name in _PROMPT_CASES),
)
REFERENCES = {
    "prompt-clip-nyu-reference": Reference("60db8e2b866b", "prompt_losses_metrics", ADAPTERS | {"clamp_views": True}),
    "prompt-clip-kitti-reference": Reference(
        "d789dd3e278e", "prompt_losses_metrics", ADAPTERS | {"frame": "kb", "clamp_views": True}
    ),
}
