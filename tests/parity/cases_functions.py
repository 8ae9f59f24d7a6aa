"""Losses, metrics, data pipeline and schedules of DepthCLIP and of the CLIP adapters."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from langdepth import losses
from langdepth.evaluation import protocols
from langdepth.evaluation.accumulator import DepthMetrics
from langdepth.evaluation.batch import evaluate_batch
from langdepth.evaluation.protocols import Protocol
from langdepth.parts.upsample import resize_aligned
from langdepth.records import DepthOutput, InputSpec, Sample
from langdepth.systems.base import System
from langdepth.systems.clip_adapters.losses import AdapterLosses, SourceView, adapter_losses
from langdepth.systems.clip_adapters.pipeline import (
    NyuImage,
    SelfSupervisedDraws,
    SupervisedDraws,
    evaluation_sample,
    self_supervised_sample,
    supervised_sample,
)
from langdepth.systems.clip_adapters.view_warp import warp_view
from langdepth.training.module import rate
from langdepth.training.sections import OptimSection
from tests.parity import unused_losses
from tests.parity.runner import Case, Compared, Reference, Tolerance, subsampled

CLOSE = Tolerance(rtol=1e-5)
EXACT = Tolerance()
BIN_CENTERS = (1.0, 1.5, 2.0, 2.25, 2.5, 2.75, 3.0)  # metres, of DepthCLIP and all the adapters
OFFICIAL_TERMS = {
    "pe_loss": "photometric",
    "sym_loss": "symmetry",
    "smth_loss": "smoothness",
    "depth_loss": "depth",
    "depth_bincls_loss": "bins",
    "loss": "total",
}
OFFICIAL_METRICS = {
    "a1": "delta1",
    "a2": "delta2",
    "a3": "delta3",
    "abs_rel": "abs_rel",
    "rmse": "rmse",
    "log_10": "log10",
    "rmse_log": "rmse_log",
    "silog": "silog",
    "sq_rel": "sq_rel",
}


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array)


class StandIn(System):
    """Gives depth (B, 1, h, w) for the images of ``samples_of`` and ``mirrored`` for their mirror images."""

    def __init__(self, depth: Tensor, mirrored: Tensor) -> None:
        super().__init__(None, InputSpec(multiple_of=1))
        self.register_buffer("answers", torch.stack([mirrored, depth]))

    def forward(self, image: Tensor, text: Any = None, scene: Any = None) -> DepthOutput:
        upright, index = image[:, 0, 0, 0].round().long(), image[:, 1, 0, 0].mul(255).round().long()
        return DepthOutput(depth=self.get_buffer("answers")[upright, index])


def samples_of(target: Tensor) -> list[Sample]:
    """Images that tell the stand-in their place in the batch (green) and that they are upright (red on the left)."""
    image = torch.zeros(len(target), 3, *target.shape[-2:])
    image[:, 0, :, : image.shape[-1] // 2] = 1
    image[:, 1] = torch.arange(len(target)).view(-1, 1, 1) / 255
    return [Sample(image=i, depth=t, mask=t > 0) for i, t in zip(image, target, strict=True)]


def image_means(system: StandIn, target: Tensor, protocol: Protocol) -> dict[str, Tensor]:
    """Mean over images of every metric, by what ``langdepth evaluate`` does with a batch."""
    evaluated = evaluate_batch(system, samples_of(target), protocol)
    metrics = DepthMetrics()
    metrics.update(evaluated.prediction, evaluated.target, evaluated.valid)
    return metrics.compute()


def _named_metrics(means: dict[str, Tensor], prefix: str) -> Compared:
    for official, name in OFFICIAL_METRICS.items():
        yield f"{prefix}_{official}", means[name], Tolerance(rtol=1e-4) if name == "silog" else CLOSE


def losses_depthclip(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """The training helpers of the DepthCLIP repository."""
    prediction, target, image = (_tensor(arrays[name]) for name in ("pred", "gt", "image"))
    mask = _tensor(arrays["mask"]).bool()
    vertical, horizontal = unused_losses.sobel(image)
    yield "imgrad_y", vertical, Tolerance(rtol=1e-4, atol=1e-6)
    yield "imgrad_x", horizontal, Tolerance(rtol=1e-4, atol=1e-6)
    yield "imgrad_loss", unused_losses.sobel_gradient(prediction, target), Tolerance(rtol=1e-4)
    masked = unused_losses.sobel_gradient(prediction, target, mask, outside_weight=0.1)
    yield "imgrad_loss_masked", masked, Tolerance(rtol=1e-4)
    for suffix, chosen in (("", mask), ("_all", None)):
        yield f"berhu_loss{suffix}", unused_losses.berhu(prediction, target, chosen), CLOSE
        yield f"scale_invariant_loss{suffix}", losses.silog(prediction, target, chosen), CLOSE
    depth = torch.where(mask, target, 0)
    region = torch.zeros_like(mask)
    region[..., mask.shape[-2] // 2 :, :] = True
    for dataset, final in (
        ("KITTI", unused_losses.known_depth(depth, region, union=True)),
        ("NYU", unused_losses.known_depth(depth)),
    ):
        yield f"make_mask_valid_{dataset}", unused_losses.known_depth(depth), EXACT
        yield f"make_mask_final_{dataset}", final, EXACT


def _adapter_terms(arrays: dict[str, np.ndarray], settings: AdapterLosses) -> dict[str, Tensor]:
    source = None
    if settings.photometric:
        source = SourceView(
            image=_tensor(arrays["source_image"]), transform=_tensor(arrays["T"]), intrinsics=_tensor(arrays["K"])
        )
    return adapter_losses(
        settings,
        depth=_tensor(arrays["depth_first"]),
        mirrored=_tensor(arrays["depth_second_mirrored"]).flip(-1),
        logits=_tensor(arrays["logits_first"]),
        image=_tensor(arrays["image"]),
        target=_tensor(arrays["target_dense"]),
        mask=None,
        bin_centers=torch.tensor(BIN_CENTERS),
        source=source,
    )


def _inference(arrays: dict[str, np.ndarray]) -> Compared:
    """The evaluation loop: a stand-in for the network, evaluated as ``langdepth evaluate`` would."""
    depth, mirrored = _tensor(arrays["depth_first"]), _tensor(arrays["depth_second_mirrored"])
    protocol = protocols.get("clip-adapters-reference").override(frame="stored")
    means = image_means(StandIn(depth, mirrored), _tensor(arrays["target_eval"]), protocol)
    yield from _named_metrics(means, "inference")


def losses_clip_adapters(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """Losses, one step of the supervised and the self-supervised loop and the evaluation loop of the root tree."""
    image, source = _tensor(arrays["image"]), _tensor(arrays["source_image"])
    target = _tensor(arrays["target_dense"])
    centers = torch.tensor(BIN_CENTERS)
    yield "l1", losses.l1(image, source), CLOSE
    yield "ssim_dissimilarity", losses.ssim_dissimilarity(image, source), CLOSE
    yield "photometric_loss", losses.photometric(image, source, reference_exact=True), Tolerance(rtol=1e-4)
    depth = resize_aligned(_tensor(arrays["depth_second_mirrored"]), image.shape[-2:])
    yield "smooth_loss", losses.smoothness(depth, image), CLOSE
    yield "bin_upper", (centers[1:] + centers[:-1]) / 2, EXACT
    yield "target_bin", losses.bin_index(target, centers), EXACT
    motion, intrinsics = _tensor(arrays["T"]), _tensor(arrays["K"])
    warped, _ = warp_view(source, depth, motion, intrinsics, reference_exact=True)
    # A coordinate that rounding moves over the border becomes 0: the published warp jumps there.
    for name in [name for name in arrays if name.startswith("warped")]:
        every = int(re.sub(r"\D", "", name) or 1)
        yield name, warped[..., ::every, ::every], Tolerance(atol=1e-3, outliers=1e-3)
    common = AdapterLosses(symmetry=0.3, smoothness=0.001, reference_exact=True)
    supervised = replace(common, depth=1.0, bins=0.05)
    self_supervised = replace(common, depth=0.0, photometric=1.0)
    for run, settings in (("train_sup", supervised), ("train_ssl", self_supervised)):
        terms = {"photometric": torch.zeros(())} | _adapter_terms(arrays, settings)
        for official, name in OFFICIAL_TERMS.items():
            yield f"{run}_{official}", terms[name], Tolerance(rtol=1e-4) if name == "photometric" else CLOSE
    yield from _inference(arrays)


def losses_eigen_adapters(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """One step of the loop of the ``eigen`` tree, for a quarter model and one of full resolution."""
    target, image = _tensor(arrays["target_dense"]), _tensor(arrays["image"])
    small = torch.empty(target.shape[-2] // 4, target.shape[-1] // 4)
    yield "target_quarter", resize_aligned(target, small.shape[-2:]), Tolerance(rtol=1e-5, atol=1e-5)
    yield "image_quarter", resize_aligned(image, small.shape[-2:]), Tolerance(rtol=1e-5, atol=5e-5)
    for system, shrink in (("depth_coarse", 4), ("depth_eigen_coarse", 1)):
        settings = AdapterLosses(depth_norm="l2", symmetry=0.3, smoothness=0.001, depth=1.0, bins=0.05, shrink=shrink)
        terms = _adapter_terms(arrays, settings)
        for official, name in OFFICIAL_TERMS.items():
            if name == "photometric":
                continue
            # Shrinking puts depths on bin edges, where rounding decides on which side they are.
            tolerance = {"bins": Tolerance(rtol=1e-3), "total": Tolerance(rtol=6e-5)}.get(name, CLOSE)
            yield f"train_{system}_{official}", terms[name], tolerance if shrink > 1 else CLOSE
    yield from _inference(arrays)


def metrics_depthclip(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """The metric function of the DepthCLIP repository, for both of its data sets."""
    nyu = protocols.get("depthclip-reference").override(flip=False)
    kitti = nyu.override(frame="stored")
    kitti_order = ("abs_diff", "abs_rel", "sq_rel", "delta1", "delta2", "delta3", "rmse", "rmse_log")
    nyu_order = ("abs_diff", "delta1", "delta2", "delta3", "abs_rel", "log10", "rmse")
    for name in arrays:
        dataset, _, rules = name.partition("_")
        if rules in ("gt", "pred"):
            continue
        prediction, target = _tensor(arrays[f"{dataset}_pred"]), _tensor(arrays[f"{dataset}_gt"])
        if rules.endswith("first_image_only"):
            prediction, target = prediction[:1], target[:1]
        if dataset == "kitti":
            crop, _, cap = rules.partition("_cap")
            order = list(kitti_order)
            protocol = kitti.override(max_depth=float(cap)).override(crop="garg" if crop == "crop" else "none")
        else:
            order = list(nyu_order)
            protocol = nyu.override(crop="none" if rules.startswith("nocrop") else None)
        means = image_means(StandIn(prediction, prediction), target, protocol)
        yield name, torch.stack([means[metric] for metric in order]), CLOSE


def metrics_clip_adapters(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """The metric function of the CLIP adapters, on a prediction of the target's size."""
    prediction, target = _tensor(arrays["pred"]), _tensor(arrays["gt"])
    protocol = protocols.get("clip-adapters-reference").override(frame="stored", flip=False, clamp_views=False)
    yield from _named_metrics(image_means(StandIn(prediction, prediction), target, protocol), "compute_errors")


# Start rate, and the epochs after which it is multiplied by 0.1. The coarse and refine configurations list 1, 2, 3, 4,
# 5, 10, 15 and 20, but the published program steps whenever the epoch can be divided by any of them: every time.
SCHEDULES: dict[str, tuple[float, Callable[[int], range]]] = {
    "clip_adapter": (0.02, lambda epochs: range(10, epochs, 10)),
    "msa": (0.002, lambda epochs: range(30, epochs, 30)),
    "coarse": (0.02, lambda epochs: range(1, epochs)),
    "refine": (0.002, lambda epochs: range(1, epochs)),
}


def lr_schedules_clip_adapters(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """The learning rate of each epoch; three steps stand for one."""
    for name in arrays:
        if name not in SCHEDULES:
            continue
        epochs, (start, spread) = len(arrays[name]), SCHEDULES[name]
        milestones = tuple(spread(epochs))
        optim = OptimSection(lr=start, schedule="step" if milestones else "constant", milestones=milestones, warm_up=0)
        factor = rate(optim, 3 * epochs, epochs)
        rates = np.array([[start * factor(3 * epoch + step) for step in range(3)] for epoch in range(epochs)])
        assert (rates == rates[:, :1]).all(), "the rate changes within an epoch"
        yield name, rates[:, 0], Tolerance(rtol=1e-9)


def data_nyu_clip_adapters(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """What the published data set returns for one image: evaluated, supervised and self-supervised."""
    image = NyuImage(rgb=arrays["rgb"], depth_mm=arrays["depth_mm"], dense_mm=arrays["dense_mm"], overlay=arrays["sam"])
    angle, x, y, mirror, gain, overlay_gain = arrays["train_draws"].tolist()
    train = SupervisedDraws(angle=angle, x=int(x), y=int(y), mirror=mirror > 0.5, gain=gain, overlay_gain=overlay_gain)
    mirror, shift_x, shift_y, angle = arrays["ssl_draws"].tolist()
    ssl = SelfSupervisedDraws(mirror=mirror > 0, shift_x=shift_x, shift_y=shift_y, angle=angle)
    samples = {
        "test": evaluation_sample(image),
        "train": supervised_sample(image, train, reference_exact=True),
        "ssl": self_supervised_sample(image, ssl, reference_exact=True),
    }
    dense = {"test": evaluation_sample(image, dense=True)}
    for run, sample in samples.items():
        maps = {
            "image": normalised(sample.image),
            "gt": sample.depth,
            "dense": dense.get(run, sample).depth,
            "seg": sample.overlay,
            "source_image": None if sample.source_image is None else normalised(sample.source_image),
        }
        for name, value in maps.items():
            if value is not None:
                for array, part in subsampled(arrays, f"{run}_{name}", value):
                    yield array, part, Tolerance(atol=1e-4, outliers=1e-3)  # single pixels along turned edges
    pose = samples["ssl"].pose
    assert pose is not None
    yield "ssl_T", pose, Tolerance(rtol=1e-2, atol=1e-4)


def normalised(image: Tensor) -> Tensor:
    """With ImageNet's mean and deviation."""
    spec = InputSpec()
    return (image - torch.tensor(spec.mean).view(3, 1, 1)) / torch.tensor(spec.std).view(3, 1, 1)


CASES = (
    Case("losses_depthclip*", losses_depthclip),
    # The published loops use the logits of the upright image only
    Case("losses_clip_adapters*", losses_clip_adapters, uncompared=("logits_second_mirrored",)),
    Case("losses_eigen_adapters*", losses_eigen_adapters, uncompared=("logits_second_mirrored",)),
    Case("metrics_depthclip*", metrics_depthclip),
    Case("metrics_clip_adapters*", metrics_clip_adapters),
    Case("data_nyu_clip_adapters*", data_nyu_clip_adapters),
    Case("lr_schedules_clip_adapters*", lr_schedules_clip_adapters),
)
ADAPTERS = {"flip": True, "resize": "bilinear-aligned"}
REFERENCES = {
    "depthclip-reference": Reference(
        "47742d0fc80a", "metrics_depthclip", ADAPTERS | {"frame": "nyu-inner", "mask_prediction": True}
    ),
    "clip-adapters-reference": Reference(
        "131e18db436a",
        "metrics_clip_adapters",
        ADAPTERS | {"frame": "nyu-inner", "mask_prediction": True, "clamp_views": True},
    ),
}
