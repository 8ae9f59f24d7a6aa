"""The trained systems of the CLIP adapters' repository."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from langdepth.records import Batch
from tests.parity.cases_depthclip import TEXT, images, official, words_depth
from tests.parity.runner import Case, Compared, Tolerance, outputs_of, subsampled

FEATURES = Tolerance(rtol=1e-4, atol=1e-5)
LOGITS, DEPTH = Tolerance(atol=1e-5), Tolerance(atol=3e-6)
SHARP_LOGITS, SHARP_DEPTH = Tolerance(atol=1e-3), Tolerance(atol=5e-5)
MAPS, ENLARGED, SHARP_MAPS = Tolerance(atol=5e-5), Tolerance(atol=2e-4), Tolerance(atol=1e-4)


def _other_temperatures(arrays: dict[str, np.ndarray], system: Any) -> Iterator[tuple[str, Any]]:
    """The temperatures that a file has arrays for, as in its names, and the system with each."""
    for number in sorted({found[1] for name in arrays if (found := re.search(r"_temp([\d.]+)", name))}):
        sharper = copy.copy(system)
        sharper._modules = {**system._modules, "word_bins": copy.copy(system.word_bins)}
        sharper.word_bins.logit_scale = 1 / float(number)
        yield number, sharper


@torch.no_grad()
def clip_adapter(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """CLIP-Adapter at the shipped temperature, and sharper."""
    system = official("clip-adapter", weights)
    yield "text_features_adapted", system.text_adapter(system.word_bins.text[0]).T, TEXT
    for tag, image in images(arrays):
        yield from words_depth(system, arrays, image, tag, LOGITS, DEPTH)
        cells = system.adapt(system.dense(image)).flatten(2).transpose(1, 2)
        yield f"image_features_adapted{tag}", cells, FEATURES
        for number, sharper in _other_temperatures(arrays, system):
            found = sharper.compare(sharper.dense(image))
            yield f"logits_temp{number}{tag}", found.logits, SHARP_LOGITS
            yield f"depth_temp{number}{tag}", found.depth, SHARP_DEPTH


def clip_adapter_trainstep(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """One training step with the official quirks: holes learned as 0 m, CLIP's BatchNorm in train mode."""
    image, target = torch.from_numpy(arrays["image"]), torch.from_numpy(arrays["target"])
    count = len(image)
    batch = Batch(
        image=image,
        depth=target,
        mask=target > 0,
        scene=torch.full((count,), -1),
        text=[None] * count,
        path=[""] * count,
    )
    system = official("clip-adapter", weights)
    with_bins = copy.deepcopy(system).train()  # of its own: a pass changes CLIP's statistics
    with_bins.config = replace(system.config, losses=replace(system.config.losses, bins=1.0))
    found = system.train().loss(batch)
    found["total"].backward()
    with torch.no_grad():
        yield "meter_depth_bincls_loss", with_bins.loss(batch)["bins"], Tolerance(rtol=1e-5)
    yield "meter_pe_loss", torch.zeros(()), Tolerance()
    yield "meter_sym_loss", found["symmetry"], Tolerance(rtol=1e-4)
    yield "meter_smth_loss", found["smoothness"], Tolerance(rtol=1e-4)
    yield "meter_depth_loss", found["depth"], Tolerance(rtol=1e-5)
    yield "meter_loss", found["total"], Tolerance(rtol=1e-5)
    buffers = dict(system.tower.named_buffers())
    for name in arrays:
        if name.startswith("after.clip.visual."):
            yield name, buffers[name.removeprefix("after.clip.visual.")], Tolerance(rtol_of_max=1e-4)
    for name, parameter in system.named_parameters():
        if parameter.grad is not None:
            text = name.startswith("text_adapter")
            # With another number of threads rounding may flip a ReLU, which moves single entries.
            tolerance = Tolerance(rtol_of_max=1e-4) if text else Tolerance(rtol_of_max=2e-3, outliers=1e-4)
            yield f"grad.{name}", parameter.grad, tolerance


def _two_stage(name: str, arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, stage: str) -> Any:
    """The system for the file's images and the checkpoint's hidden width."""
    assert weights is not None
    hidden = next(len(value) for key, value in weights.items() if key.endswith("coarse_adapter.fc.0.weight"))
    _, image = next(images(arrays))
    return official(name, weights, stage=stage, hidden=hidden, size=tuple(image.shape[-2:]))


@torch.no_grad()
def _maps(system: Any, arrays: dict[str, np.ndarray], image: Tensor) -> Compared:
    """What a two-stage system gives, before and after the mean with the mirror image."""
    depth = system.raw_depth(image).depth
    mirrored = system.raw_depth(image.flip(-1)).depth.flip(-1)
    enlarged = (system(image).depth + system(image.flip(-1)).depth.flip(-1)) / 2
    yield "depth", depth, MAPS
    yield "depth_flip", mirrored, MAPS
    yield "depth_avg_clamped", (depth.clamp(0, 10) + mirrored.clamp(0, 10)) / 2, MAPS
    for name, value in subsampled(arrays, "depth_avg_upsampled", enlarged):
        yield name, value, ENLARGED


@torch.no_grad()
def coarse_adapter(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """The first stage of clip-coarse-refined."""
    system = _two_stage("clip-coarse-refined", arrays, weights, "coarse")
    yield "text_features", system.word_bins.text[0].T, TEXT
    _, image = next(images(arrays))
    found = system.compare(system.dense(image))
    yield "logits", found.logits, LOGITS
    yield "initial_depth", found.depth, DEPTH
    yield from _maps(system, arrays, image)
    for number, sharper in _other_temperatures(arrays, system):
        yield f"initial_depth_temp{number}", sharper.compare(sharper.dense(image)).depth, SHARP_MAPS
        for name, value in subsampled(arrays, f"depth_temp{number}", sharper.raw_depth(image).depth):
            yield name, value, SHARP_MAPS


@torch.no_grad()
def refined_adapter(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """Both stages of clip-coarse-refined."""
    system = _two_stage("clip-coarse-refined", arrays, weights, "refined")
    _, image = next(images(arrays))
    yield "coarse", system.coarse_depth(image, system.frozen_features(image)), MAPS
    yield "logits", system.compare(system.dense(image)).logits, LOGITS
    for name, value in subsampled(arrays, "refiner_conv1", system.refiner.conv1(image)):
        yield name, value, FEATURES
    yield from _maps(system, arrays, image)


def _eigen_logits(weights: dict[str, Tensor] | None, image: Tensor) -> Tensor:
    """What the official Eigen models return beside their depth: the words' logits of a CLIP of their own."""
    assert weights is not None
    clip = {key.removeprefix("coarse_model."): value for key, value in weights.items()}
    system = official("depthclip", clip, normalise="after", logit_scale=10.0)
    logits: Tensor = system.compare(system.dense(image)).logits
    return logits


@torch.no_grad()
def eigen_coarse(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """The official coarse network with its 256 output channels."""
    system = _two_stage("eigen", arrays, weights, "coarse")
    _, image = next(images(arrays))
    yield "logits", _eigen_logits(weights, image), LOGITS
    features = system.convs(image)
    yield "conv_features", features, FEATURES
    for name, value in subsampled(arrays, "depth256", system.coarse(features.flatten(2))):
        yield name, value, FEATURES
    yield "depth256_channel_mean", system.raw_depth(image).depth, FEATURES


@torch.no_grad()
def eigen_refine(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """The official refiner on the channel mean of the official coarse network."""
    system = _two_stage("eigen", arrays, weights, "refined")
    _, image = next(images(arrays))
    yield "logits", _eigen_logits(weights, image), LOGITS
    yield "coarse_channel_mean", system.coarse_depth(image, {}), FEATURES
    for name, value in subsampled(arrays, "refiner_conv1", system.refiner.conv1(image)):
        yield name, value, FEATURES
    yield "depth_from_channel_mean", system.raw_depth(image).depth, FEATURES


@torch.no_grad()
def msa(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """The Multi-Scale Adapter: its decoder block by block, and depth at every weight of the words that a file has."""
    overlays = dict(images(arrays, "seg"))
    system = official("msa-sam" if overlays else "msa", weights)
    yield "text_features", system.word_bins.text[0].T, TEXT
    decoder = system.decoder
    named = {"bridge": decoder.bridge, "delta": decoder, "seg_encoded": system.overlay_encoder}
    named |= {f"up{level + 1}": block for level, block in enumerate(decoder.up_blocks)}
    blocks = outputs_of({name: module for name, module in named.items() if module is not None})
    for tag, image in images(arrays):
        overlay = overlays.get(tag)
        yield f"logits{tag}", system.compare(system.dense(image)).logits, SHARP_LOGITS
        alphas = {found[1] for name in arrays if (found := re.match(rf"depth_alpha([\d.]+)\w*{tag}", name))}
        for alpha in sorted(alphas):
            system.config = replace(system.config, clip_weight=float(alpha))
            depth = system.raw_depth(image, overlay=overlay).depth
            tolerance = SHARP_MAPS if float(alpha) else FEATURES
            for name, value in subsampled(arrays, f"depth_alpha{alpha}{tag}", depth):
                yield name, value, tolerance
            if any(name.startswith(f"depth_alpha{alpha}_avg_clamped{tag}") for name in arrays):
                mirrored_overlay = None if overlay is None else overlay.flip(-1)
                mirrored = system.raw_depth(image.flip(-1), overlay=mirrored_overlay).depth.flip(-1)
                mean = (depth.clamp(0, 10) + mirrored.clamp(0, 10)) / 2
                for name, value in subsampled(arrays, f"depth_alpha{alpha}_avg_clamped{tag}", mean):
                    yield name, value, tolerance
        system.config = replace(system.config, clip_weight=0.0)
        system.raw_depth(image, overlay=overlay)
        for base, value in blocks.items():
            for name, part in subsampled(arrays, f"{base}{tag}", value):
                yield name, part, FEATURES


CASES = (
    Case("clip_adapter_trainstep*", clip_adapter_trainstep, "clip_adapter", slow=True),
    Case("clip_adapter*", clip_adapter, "clip_adapter"),
    Case("coarse_adapter*", coarse_adapter, "coarse_adapter", slow=True),
    Case("refined_adapter*", refined_adapter, "refined_adapter", slow=True),
    Case("eigen_coarse*", eigen_coarse, "eigen_coarse", slow=True),
    Case("eigen_refine*", eigen_refine, "eigen_refine", slow=True),
    Case("msa_sam*", msa, "msa_sam"),
    Case("msa*", msa, "msa"),
)
