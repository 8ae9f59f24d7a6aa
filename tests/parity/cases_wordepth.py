"""wordepth_*: the encoder, both kinds of step, a training step of each kind, losses and schedule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from langdepth import losses
from langdepth.backbones.swin import SIZES, Swin
from langdepth.evaluation.metrics import error_sums, metrics_from_sums
from langdepth.records import Batch
from langdepth.systems import registry
from langdepth.systems.wordepth.blocks import Gaussian, TwoConvs, enlarged, kl_of_noise, kl_of_text
from langdepth.systems.wordepth.model import Step
from langdepth.training.module import rate
from langdepth.training.sections import OptimSection
from tests.parity.runner import Case, Compared, Tolerance

FEATURE, DEPTH = Tolerance(atol=1e-4), Tolerance(rtol=1e-4)
EXACT, RELATIVE = Tolerance(), Tolerance(rtol=1e-5)
SKIPS = {"noskip": "never", "skip": "always"}
METRIC_NAMES = {"rms": "rmse", "log_rms": "rmse_log", "d1": "delta1", "d2": "delta2", "d3": "delta3"}
# The golden files' groups of parameters -> our modules.
GROUPS = {
    "backbone": "encoder",
    "eps_layer": "sampler",
    "text_encoder": "text_vae",
    "mlayer": "metric",
    "outc": "head",
} | {f"ref_{level}": f"refine_{level}" for level in (2, 3, 4)}


def _part(arrays: dict[str, np.ndarray], base: str, value: Tensor) -> Tensor:
    """What the golden file keeps of ``value``."""
    return value[tuple(slice(None, None, int(step)) for step in arrays[f"stride_{base}"])]


def _official(weights: dict[str, Tensor] | None, case: str) -> Any:
    """The system with the case's checkpoint, for images that are normalised already."""
    assert weights is not None
    system: Any = registry.build("wordepth-kitti" if "kitti" in case else "wordepth-nyu")
    tensors, report = system.convert_official(weights)
    assert report["missing"] == []
    assert [key for key in report["ignored"] if not key.startswith("ref_2.fw.")] == []
    system.load_state_dict(tensors)
    system.get_buffer("_mean").fill_(0)
    system.get_buffer("_std").fill_(1)
    return system.requires_grad_(True).eval()  # one system stands for all skip modes


@torch.no_grad()
def wordepth_swin(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """The encoder alone."""
    assert weights is not None
    position = tuple(4 * side for side in weights["backbone.absolute_pos_embed"].shape[-2:])
    encoder = Swin(SIZES["swin-large"], position=(position[0], position[1])).eval()
    encoder.load_state_dict({key.removeprefix("backbone."): value for key, value in weights.items()})
    for name, value in zip(("x2", "x3", "x4", "x5"), encoder(torch.from_numpy(arrays["image"])), strict=True):
        yield name, _part(arrays, name, value), FEATURE
        yield f"stats_{name}", torch.stack([value.mean(), value.std(), value.abs().max()]), FEATURE


@torch.no_grad()
def wordepth(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """An image step or, where the file has noise, a text step."""
    system, image = _official(weights, case), torch.from_numpy(arrays["image"])
    for name, value in zip(("x2", "x3", "x4", "x5"), system.encoder(image), strict=True):
        if name in arrays:
            yield name, _part(arrays, name, value), FEATURE
    scenes, seen = system.scene_distribution(torch.from_numpy(arrays["text"])), system.encode_image(image)
    yield "text_mean", scenes.mean, FEATURE
    yield "text_logvar", scenes.logvar, FEATURE
    yield "text_std", scenes.std, FEATURE
    if "noise" in arrays:
        noise = torch.from_numpy(arrays["noise"])
    else:
        yield "metric", seen.metric[..., None, None], FEATURE
        yield "up_4", _part(arrays, "up_4", seen.x), FEATURE
        noise = system.sampler(seen.x, scenes)
        yield "eps", _part(arrays, "eps", noise), FEATURE
    yield "latent", _part(arrays, "latent", scenes.at(noise)), FEATURE

    found: dict[str, Any] = {}
    for name in ("refine_4", "up_3", "refine_3", "up_2", "refine_2"):
        system.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: found.update({name: output, f"{name} of": inputs})
        )
    for suffix, mode in SKIPS.items():
        system.config = replace(system.config, skip_mode=mode)
        if "noise" in arrays:
            depth = outc = system.decode(scenes.at(noise), seen if mode == "always" else None)
        else:
            depth = system.image_step(seen, scenes, noise)
            outc = depth / seen.metric[:, :1, None, None].sigmoid() - seen.metric[:, 1:, None, None].exp()
        values = {name: found[name] for name in ("up_3", "up_2")}
        for level in (4, 3, 2):
            values[f"ref_{level}_x"], values[f"ref_{level}_d"] = found[f"refine_{level}"]
        values["ref_2_x"] = _unseen_feature(weights, torch.cat(found["refine_2 of"], 1))
        values["d_sum"] = sum(enlarged(values[f"ref_{level}_d"], 2**level) for level in (2, 3, 4))
        for name, value in values.items():
            yield f"{name}_{suffix}", _part(arrays, name, value), FEATURE
        yield f"outc_{suffix}", _part(arrays, "outc", outc), DEPTH
        yield f"depth_{suffix}", _part(arrays, "depth", depth), DEPTH
        yield f"depth_mean_sd_{suffix}", torch.stack([depth.double().mean(), depth.double().std()]), DEPTH


def _unseen_feature(weights: dict[str, Tensor] | None, both: Tensor) -> Tensor:
    """The last refinement's feature, which the system leaves out because nothing uses it."""
    assert weights is not None
    own = {key.removeprefix("ref_2.fw."): value for key, value in weights.items() if key.startswith("ref_2.fw.")}
    head = TwoConvs(both.shape[1], len(own["2.bias"]))
    head.load_state_dict(own)
    feature: Tensor = head(both)
    return feature


def wordepth_train(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """Loss, gradients and clipping of both kinds of step, stochastic depth off."""
    system, image = _official(weights, case).train(), torch.from_numpy(arrays["image"])
    system.encoder.eval()
    # The captions' features are enlarged in this file, and the noise is given.
    system.batch_features = lambda batch: torch.from_numpy(arrays["text"])
    system.draw_noise = lambda *shape: torch.from_numpy(arrays["noise"])
    depth = torch.from_numpy(arrays["depth_gt"])
    batch = Batch(
        image=image,
        depth=depth,
        mask=depth > 0,
        scene=torch.full((len(image),), -1),
        text=[None] * len(image),
        path=[""] * len(image),
    )
    predicted: list[Tensor] = []
    by_image = losses.silog_by_image

    def noted(depth: Tensor, *rest: Any) -> Tensor:
        predicted.append(depth)
        return by_image(depth, *rest)

    for suffix, mode in SKIPS.items():
        system.config = replace(system.config, skip_mode=mode)
        for kind in get_args(Step):
            end = f"{kind.replace('image', 'img').replace('text', 'txt')}_{suffix}"
            with mock.patch.object(losses, "silog_by_image", noted):
                parts = system.loss(batch, kind)
            yield f"loss_{end}", parts["total"][None], RELATIVE
            yield f"si_{end}", parts["silog"][None], RELATIVE
            yield f"kl_{end}", parts["kl"][None], DEPTH
            yield f"depth_{end}", predicted.pop()[..., ::2, ::2], DEPTH
            system.zero_grad(set_to_none=True)
            parts["total"].backward()
            norms = [_norm(system.get_submodule(GROUPS.get(str(group), str(group)))) for group in arrays["groups"]]
            yield f"grad_norm_{end}", np.array(norms), Tolerance(rtol=5e-4)
            total = torch.nn.utils.clip_grad_norm_(system.parameters(), 1.0)
            yield f"grad_norm_total_{end}", total[None], Tolerance(rtol=5e-4)
            yield f"grad_outc_clipped_{end}", system.head.weight.grad, Tolerance(rtol_of_max=3e-3)


def _norm(module: torch.nn.Module) -> float:
    """Of all gradients together; NaN where there is none at all. In float32 large tensors' sums of squares are off."""
    gradients = [p.grad.double() for p in module.parameters() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients)) if gradients else float("nan")


def wordepth_losses(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """Losses, metrics of all pixels together, the images' normalisation, schedule.

    Of the file's other arrays the published program makes no use: its blends of a depth map with its flipped twin's,
    and depth stretched to [0, 1].
    """
    target = torch.from_numpy(arrays["gt"])
    prediction = torch.from_numpy(arrays["pred"]).requires_grad_()

    def mask(most: float) -> Tensor:
        return (target > 0.1) & (target < most)

    for name in arrays:
        if name.startswith(("silog_lambda", "silog64_lambda")):
            focus, most = (float(number) for number in name.partition("_lambda")[2].split("_max"))
            depths = (prediction.double(), target.double()) if "64" in name else (prediction, target)
            yield name, losses.silog_by_image(*depths, mask(most), focus).sum()[None], RELATIVE
    each = losses.silog_by_image(prediction, target, mask(10))
    yield "silog_each_item", each, RELATIVE
    yield "silog_grad", torch.autograd.grad(each.sum(), prediction)[0], Tolerance(rtol=1e-5, rtol_of_max=1e-6)
    none = losses.silog_by_image(prediction, torch.zeros_like(target), mask(0)).sum()
    yield "silog_no_valid_pixel", none[None], EXACT
    yield "other_silog_lambda0.85", losses.silog(prediction, target, mask(10))[None], RELATIVE
    scenes = Gaussian(*(torch.from_numpy(arrays[f"kl_{name}"]) for name in ("mean", "logvar")))
    yield "kl_text", kl_of_text(scenes)[None], RELATIVE
    yield "kl_image", kl_of_noise(torch.from_numpy(arrays["kl_eps"]))[None], RELATIVE
    known = (target > 1e-3) & (target < 10)
    found = metrics_from_sums(error_sums(prediction.clamp(1e-3, 10), target, known).sum(0))
    names = [METRIC_NAMES.get(str(name), str(name)) for name in arrays["metric_names"]]
    for end in ("", "64"):
        yield f"metrics{end}", torch.stack([found[name] for name in names]), RELATIVE
    with torch.device("meta"):
        system = registry.build("wordepth-nyu")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (system.input_spec.mean, system.input_spec.std))
    yield "inv_normalize", torch.from_numpy(arrays["inv_in"]) * std + mean, RELATIVE
    optim = OptimSection(lr=3e-5, end_lr=1e-5, schedule="poly", warm_up=0.0)
    shares = rate(optim, int(arrays["lr_total"].item()))
    yield "lr", np.array([optim.lr * shares(int(step)) for step in arrays["lr_step"]]), RELATIVE


CASES = (
    Case("wordepth_losses*", wordepth_losses, uncompared=("metric_names",)),
    Case("wordepth_swin*", wordepth_swin, "wordepth_swin"),
    Case("wordepth_train*", wordepth_train, "wordepth_full"),
    Case("wordepth_full*", wordepth, "wordepth_full", slow=True),
    Case("wordepth_text*", wordepth, "wordepth_full", slow=True),
    Case("wordepth_kitti*", wordepth, "wordepth_kitti"),
)
