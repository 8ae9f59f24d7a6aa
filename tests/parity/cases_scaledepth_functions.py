"""Losses, metrics, scene text and training images of ScaleDepth and of the toolbox it is published in."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from langdepth import losses
from langdepth.backbones.clip_weights import ClipWeights
from langdepth.camera import Camera
from langdepth.data.sets.nyu import scene_label
from langdepth.data.transforms import Augmentation, TrainTransform, depth_stripe
from langdepth.evaluation import protocols
from langdepth.evaluation.batch import evaluate_batch
from langdepth.evaluation.metrics import depth_metrics
from langdepth.evaluation.protocols import Protocol
from langdepth.records import Sample
from langdepth.text.clip_text import ClipTextTower, encode_sentences, tokenize
from langdepth.text.scene_table import PROMPT, encode_scenes
from langdepth.text.scenes import SCENES
from tests.parity.cases_functions import StandIn, samples_of
from tests.parity.cases_scaledepth_data import decoded, listings
from tests.parity.runner import Case, Compared, Reference, Tolerance

CLOSE = Tolerance(rtol=1e-5)
GRADIENT = Tolerance(rtol_of_max=1e-5)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array)


def _with_gradient(name: str, loss: Callable[[Tensor], Tensor], array: np.ndarray, part: str) -> Compared:
    """The loss of ``array`` as ``name``, its gradient as ``name.grad_part``."""
    value = _tensor(array).requires_grad_()
    found = loss(value)
    found.backward()
    assert value.grad is not None
    yield name, found, CLOSE
    yield f"{name}.grad_{part}", value.grad, GRADIENT


def scaledepth_losses(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """Depth, scene and bin losses with their gradients."""
    target, scale, relative = (_tensor(arrays[name]) for name in ("gt", "scale", "relative"))
    known, one = target > 0, torch.ones(len(target))
    for name, limit in (("max_none", None), ("max_10", 10.0)):

        def sig_plus(relative: Tensor, scale: Tensor, limit: float | None = limit, warm_up: bool = False) -> Tensor:
            return losses.sig_plus(relative, scale, target, known, max_depth=limit, warm_up=warm_up)

        yield from _with_gradient(f"sigloss.{name}", lambda p: sig_plus(p, one), arrays["pred"], "pred")
        yield from _with_gradient(f"sigplus.{name}", lambda r: sig_plus(r, scale), arrays["relative"], "relative")
        yield from _with_gradient(f"sigplus.{name}", lambda s: sig_plus(relative, s), arrays["scale"], "scale")
    yield "sigloss.warmup_first_call", sig_plus(_tensor(arrays["pred"]), one, warm_up=True), CLOSE
    yield "sigloss.warmup_second_call", sig_plus(_tensor(arrays["pred"]), one), CLOSE

    logits, label = _tensor(arrays["scene_logits"]), _tensor(arrays["label"])
    yield from _with_gradient(
        "scene_ce.on_probabilities",
        lambda x: 0.01 * losses.scene_cross_entropy(x, label, form="probabilities"),
        arrays["scene_logits"],
        "logits",
    )
    yield from _with_gradient(
        "scene_ce.on_logits", lambda x: 0.01 * losses.scene_cross_entropy(x, label), arrays["scene_logits"], "logits"
    )
    unknown = _tensor(arrays["label_with_ignore"]).clamp_min(-1)
    yield (
        "scene_ce.ignore_minus100",
        0.01 * losses.scene_cross_entropy(logits, unknown, mean_over_all=True),
        CLOSE,
    )
    yield "celoss.loss", losses.scene_cross_entropy(logits, label), CLOSE

    def chamfer(edges: Tensor) -> Tensor:
        return 0.1 * losses.bin_chamfer((edges[:, 1:] + edges[:, :-1]) / 2, target, target >= losses.EPSILON)

    yield from _with_gradient("bins_chamfer", chamfer, arrays["bin_edges"], "edges")

    def toolbox_silog(prediction: Tensor) -> Tensor:
        # In millimetres: the value is the same, and the target of half a millimetre is not clamped.
        per_image = zip((1000 * prediction).split(1), (1000 * target).split(1), known.split(1), strict=True)
        return torch.stack([losses.silog(p, t, k, 0.5, 1.0) for p, t, k in per_image]).mean()

    yield from _with_gradient("toolbox_silog.eps_1e-6", toolbox_silog, arrays["pred"], "pred")


METRICS = {f"d{k:g}": f"delta{k:g}" for k in (0.5, 1, 2, 3)} | {
    name: name for name in ("abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog")
}


CROPS: dict[str | None, protocols.Crop] = {
    "nyu_crop": "eigen-nyu-pixels", "garg_crop": "garg", "eigen_crop": "eigen-kitti", None: "none",
}  # fmt: skip
NYU = {"min_depth_eval": 0.001, "max_depth_eval": 10.0, "crop_type": "nyu_crop"}
STREET = {"min_depth_eval": 0.001, "max_depth_eval": 80.0, "crop_type": "garg_crop"}
CLAMP = {"depth_clamp": True}
SUN = {"max_depth_eval": 8.0, "gt_depth_clamp": True, "focal_length_rescale": True}
FOCAL = 519.163756
ANY = {"frame": "stored", "min_depth": 2.0, "clamp_prediction": False}
# The published sets of options, and the presets that stand for each, with what the case changes in them
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    "nyu_n": (NYU, {"scaledepth-n-reference": {}, "ibims1": {}}),
    "nyu_nk": (NYU | CLAMP, {"scaledepth-nk-nyu-reference": {}}),
    "garg": (STREET | CLAMP, {"scaledepth-nk-kitti-reference": {}, "vkitti2": {}}),
    "garg_any": (STREET | {"min_depth_eval": 2}, {"scaledepth-k-reference": ANY, "diml-outdoor": {}}),
    "eigen": (
        STREET | {"crop_type": "eigen_crop"},
        {"scaledepth-nk-kitti-reference": {"crop": "eigen-kitti", "clamp_prediction": False}},
    ),
    "sunrgbd": (
        NYU | CLAMP | SUN,
        {
            "scaledepth-sunrgbd-reference": {},
            "scaledepth-nk-nyu-reference": {"max_depth": 8.0, "training_focal": FOCAL},
            "sunrgbd": {"training_focal": FOCAL},
        },
    ),
    "none": ({}, {}),
}


def rules_of(options: dict[str, Any]) -> Protocol:
    """What the published evaluation does with these options. A limit that is not given is our largest one."""
    known = {"min_depth_eval", "max_depth_eval", "depth_clamp", "gt_depth_clamp", "focal_length_rescale", "crop_type"}
    assert set(options) <= known, options  # gt_depth_clamp has no effect: what it moves lies outside the mask
    return Protocol(
        name="published",
        crop=CROPS[options.get("crop_type")],
        min_depth=options.get("min_depth_eval", 0.001),
        max_depth=min(options.get("max_depth_eval", math.inf), protocols.FARTHEST),
        clamp_prediction=options.get("depth_clamp", False),
        training_focal=FOCAL if options.get("focal_length_rescale", False) else None,
    )


def scaledepth_metrics(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """A stand-in for the network, evaluated as ``langdepth evaluate`` would: by the file's options, and by our presets
    where these are the published ones."""
    for name in [name.removesuffix(".options_json") for name in arrays if name.endswith(".options_json")]:
        options = json.loads(str(arrays[f"{name}.options_json"]))
        rules = [rules_of(options)]
        published, presets = PUBLISHED.get(name, (None, {}))
        if options == published:
            # A finished prediction is neither mirrored nor seen through windows
            rules += [
                replace(protocols.get(preset).override(**changes), flip=False, window=None, stride=None)
                for preset, changes in presets.items()
            ]
        for protocol in rules:
            yield from _evaluated(arrays, name, protocol)


def _evaluated(arrays: dict[str, np.ndarray], name: str, protocol: Protocol) -> Compared:
    read = {part: arrays[f"{name}.{part}"] for part in ("code_per_metre", "focal", "names")}
    prediction, target = (
        _tensor(arrays[f"{name}.{kind}_code"].astype(np.float32) / np.float32(read["code_per_metre"]))[:, None]
        for kind in ("pred", "gt")
    )
    height, width = target.shape[-2:]
    rows, columns = protocol.crop_slices(height, width)
    yield f"{name}.crop_rows_cols", np.array([rows.start, rows.stop, columns.start, columns.stop]), Tolerance()
    samples = [
        replace(sample, camera=Camera(fx=focal, fy=focal, cx=0.0, cy=0.0, width=width, height=height))
        for sample, focal in zip(samples_of(target), read["focal"].tolist(), strict=True)
    ]
    evaluated = evaluate_batch(StandIn(prediction, prediction), samples, protocol)
    yield f"{name}.n_valid", evaluated.valid.flatten(1).sum(1), Tolerance()
    found = depth_metrics(evaluated.prediction, evaluated.target, evaluated.valid)
    per_image = torch.stack([found[METRICS[metric]] for metric in read["names"].tolist()], dim=1)
    yield f"{name}.per_image", per_image, Tolerance(rtol=3e-5)
    yield f"{name}.mean", per_image.mean(0), Tolerance(rtol=3e-5)


def scaledepth_text(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """The scene table: tokens of the sentences, their embeddings, unit vectors."""
    assert weights is not None
    tensors = {name.removeprefix("backbone.clip_model."): value for name, value in weights.items()}
    clip = ClipWeights("convnext_large_d_320", False, tensors, case, "")
    prompts = arrays["prompts"].tolist()
    yield "tokens", tokenize(prompts), Tolerance()
    with torch.no_grad():
        features = ClipTextTower.from_weights(clip)(_tensor(arrays["tokens"]))
    yield "embedding", features, Tolerance(atol=3e-5)
    yield "embedding_normalized", unit_features(clip, prompts), Tolerance(atol=1e-6)


def unit_features(clip: ClipWeights, prompts: list[str]) -> Tensor:
    """The scene table of our own wording, else the features of the sentences, (N, D)."""
    start = PROMPT.removesuffix("{}")
    if all(prompt.startswith(start) for prompt in prompts):
        return encode_scenes(clip, [prompt.removeprefix(start).replace(" ", "_") for prompt in prompts])
    return encode_sentences(prompts, clip)


def scaledepth_data(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """Scene labels and what is done to training images. The offsets of its random crop are another generator's."""
    if "classes" in arrays:
        assert arrays["classes"].tolist() == list(SCENES)
    labels = [scene_label(name.rsplit("/")[-1]) for name in arrays["nyu.file"].tolist()]
    yield "nyu.category_id", np.array(labels), Tolerance()
    colors = _tensor(arrays["depth_mix.image"]).permute(2, 0, 1).float() / 255
    depth = _tensor(arrays["depth_mix.gt_metres"])[None]
    _, left, width = arrays["depth_mix.uniform_draws_prob_left_width"].tolist()
    mixed = depth_stripe(colors, depth, left, width, wraps=True)
    yield "depth_mix.out", mixed.permute(1, 2, 0) * 255, Tolerance(atol=1e-4)

    still = Augmentation(
        flip=0.0, zoom=1.0, rotate=0.0, colour_probability=0.0, grey=0.0, blur=0.0, random_crop=False
    )  # fmt: skip
    cut = TrainTransform(still, 1, resized=False, kb_sources=("kitti",))
    height, width = arrays["pad.gt"].shape[-2:]
    padded = cut(Sample(image=colors, depth=depth, mask=depth > 0), (height, width))
    yield "pad.image", padded.image[None] * 255, Tolerance(atol=1e-4)
    yield "pad.gt", padded.depth, Tolerance()
    yield from listings(arrays)
    if "depth_decode.raw" in arrays:
        yield from decoded(arrays)
    if "kb_crop.table" in arrays:
        table = arrays["kb_crop.table"].copy()
        for row in table:
            places = torch.arange(1.0, row[0] * row[1] + 1).view(1, *row[:2].tolist())  # exact in float32
            kitti = Sample(image=places.expand(3, -1, -1) / 1e7, depth=places, mask=places > 0, source="kitti")
            found = cut(kitti, (352, 1216)).depth
            top, left = divmod(int(found[0, 0, 0]) - 1, int(row[1]))
            row[2:6] = top, left, *found.shape[1:]
        yield "kb_crop.table", table, Tolerance()


# The readers' names of columns, focal lengths that they leave out, the size that images are brought to before windows
# are cut from them (ours are cut as stored), places drawn by another generator
UNCOMPARED = (
    "kb_crop.columns",
    *(f"{name}.focal" for name in ("kitti", "ibims", "diode", "hypersim", "ddad", "diml", "vkitti2")),
    *(f"resize.{name}" for name in ("table", "columns", "image", "image_keep20", "image_to_w50_h20")),
    "random_crop.image",
    "random_crop.gt",
)
CASES = (
    Case("scaledepth_metrics*", scaledepth_metrics),
    Case("scaledepth_data*", scaledepth_data, uncompared=UNCOMPARED),
    Case("scaledepth_text*", scaledepth_text, "scaledepth_text"),
    Case("scaledepth_losses*", scaledepth_losses, uncompared=("celoss.top1_top5_percent",)),  # a line of the log
)
WINDOWS = {"flip": True, "window": (352, 512), "stride": (160, 160)}
REFERENCES = {
    "scaledepth-n-reference": Reference("dc4afbfb42a2", "scaledepth_metrics", {"clamp_prediction": False}),
    "scaledepth-k-reference": Reference(
        "9305098b4fe2", "scaledepth_metrics", {"frame": "kb", "resize": "bilinear-twice", "clamp_prediction": False}
    ),
    "scaledepth-nk-nyu-reference": Reference("e372f11c0680", "scaledepth_metrics", WINDOWS),
    "scaledepth-nk-kitti-reference": Reference("c14858d56a92", "scaledepth_metrics", WINDOWS | {"frame": "kb"}),
    "scaledepth-sunrgbd-reference": Reference("b66d5f1ac1ba", "scaledepth_metrics", {"training_focal": 519.163756}),
}
