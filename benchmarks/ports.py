"""The published steps of several systems, one after the other, in plain torch: what speed is compared with.

Each function takes a system for its tensors and gives a function that predicts one image, under ``no_grad``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from langdepth.systems.base import System


def depthclip(system: System, image: Tensor) -> Callable[[], Tensor]:
    """Image and mirror one after the other, text features computed once."""
    import torch
    from open_clip.modified_resnet import ModifiedResNet
    from torch.nn import functional as F

    visual = ModifiedResNet(layers=(3, 4, 6, 3), output_dim=1024, heads=32, image_size=224, width=64)
    state = system.state_dict()
    visual.load_state_dict({key.removeprefix("tower."): state[key] for key in state if key.startswith("tower.")})
    visual.eval()
    text = state["word_bins.text"][0].T.contiguous()  # (1024, 7)
    bins = torch.tensor([1.0, 1.5, 2.0, 2.25, 2.5, 2.75, 3.0])
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)

    def depth(photo: Tensor) -> Tensor:
        x = visual.stem((photo - mean) / std)
        x = visual.layer4(visual.layer3(visual.layer2(visual.layer1(x))))
        grid = x.shape[-2:]
        x = x.flatten(2).permute(0, 2, 1)  # (B, cells, 2048)
        x = x / x.norm(dim=-1, keepdim=True)
        x = F.interpolate(x, scale_factor=0.5, mode="nearest")
        logits = (100.0 * x @ text).permute(0, 2, 1).reshape(-1, 7, *grid) / 0.1
        return (F.softmax(logits, dim=1) * bins.view(1, 7, 1, 1)).sum(1, keepdim=True)

    def run() -> Tensor:
        with torch.no_grad():
            mirrored = torch.flip(depth(torch.flip(image, [3])), [3])
            mean_depth = 0.5 * (depth(image) + mirrored)
            return F.interpolate(mean_depth, size=image.shape[-2:], mode="bilinear", align_corners=True)

    return run


def scaledepth(system: System, image: Tensor) -> Callable[[], Tensor]:
    """timm's blocks as they come, attention of ``nn.MultiheadAttention``.

    After each of the nine layers what prediction needs of the last alone: class logits, the masks of all queries at
    stride 4, bins, relative depth, scale and scene scores.
    """
    import timm
    import torch
    from torch import nn
    from torch.nn import functional as F

    from langdepth.systems.scaledepth.official import official_names

    tensors = system.state_dict()
    names = official_names(pixel_layers=6, decoder_layers=9)
    weights = {}
    for key, value in tensors.items():
        prefix = max((ours for ours in names.values() if key.startswith(ours)), key=len, default="")
        official = next((theirs for theirs, ours in names.items() if ours == prefix), "")
        weights[official + key.removeprefix(prefix)] = value
    w = {key.removeprefix("decode_head."): value for key, value in weights.items()}
    with torch.device("meta"):
        trunk: Any = timm.create_model("convnext_large", num_classes=0).eval()
    prefix = "backbone.clip_model.visual.trunk."
    seen = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    trunk.load_state_dict(seen, strict=False, assign=True)
    mean, std = system.get_buffer("_mean"), system.get_buffer("_std")
    pixels, layers = "pixel_decoder.", "transformer_decoder.layers."

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[name + ".weight"], w[name + ".bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[name + ".weight"], w[name + ".bias"])

    def conv(x: Tensor, name: str, padding: int = 0) -> Tensor:
        x = F.conv2d(x, w[name + ".conv.weight"], w.get(name + ".conv.bias"), padding=padding)
        return F.group_norm(x, 32, w[name + ".gn.weight"], w[name + ".gn.bias"])

    def feed_forward(x: Tensor, name: str) -> Tensor:
        return x + linear(F.relu(linear(x, name + ".ffn.layers.0.0")), name + ".ffn.layers.1")

    def waves(height: int, width: int) -> Tensor:
        ones = torch.ones(1, height, width)
        y, x = ones.cumsum(1), ones.cumsum(2)
        y, x = (axis / (last + 1e-6) * 2 * math.pi for axis, last in ((y, y[:, -1:]), (x, x[:, :, -1:])))
        steps = 10000 ** (2 * (torch.arange(128) // 2) / 128)
        parts = [axis[..., None] / steps for axis in (y, x)]
        parts = [torch.stack((part[..., 0::2].sin(), part[..., 1::2].cos()), 4).flatten(3) for part in parts]
        return torch.cat(parts, 3).flatten(1, 2)  # (1, hw, 256)

    def deformable(x: Tensor, position: Tensor, places: Tensor, sizes: list[tuple[int, int]], name: str) -> Tensor:
        count = x.shape[1]
        value = linear(x, name + ".value_proj").view(1, count, 8, 32)
        offsets = linear(x + position, name + ".sampling_offsets").view(1, count, 8, 3, 4, 2)
        attention = linear(x + position, name + ".attention_weights").view(1, count, 8, 12).softmax(-1)
        norms = torch.tensor([[width, height] for height, width in sizes])
        grids = 2 * (places[None, :, None, None, None] + offsets / norms[None, None, None, :, None]) - 1
        sampled = []
        for level, part in enumerate(value.split([h * width for h, width in sizes], dim=1)):
            maps = part.flatten(2).transpose(1, 2).reshape(8, 32, *sizes[level])
            grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
            sampled.append(F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
        attention = attention.transpose(1, 2).reshape(8, 1, count, 12)
        mixed = (torch.stack(sampled, dim=-2).flatten(-2) * attention).sum(-1).view(1, 256, count)
        return x + linear(mixed.transpose(1, 2), name + ".output_proj")

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, name: str) -> Tensor:
        module = nn.MultiheadAttention(256, 8, batch_first=True, device="meta")
        module.load_state_dict({k: w[f"{name}.attn.{k}"] for k in module.state_dict()}, assign=True)
        mixed: Tensor = module.eval()(query, key, value, attn_mask=mask)[0]
        return mixed

    def head(queries: Tensor, features: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        bins = norm(queries[:, :64], "transformer_decoder.post_norm")
        logits = linear(bins, "cls_embed").squeeze(-1)
        embedding = linear(F.relu(linear(F.relu(linear(bins, "mask_embed.0")), "mask_embed.2")), "mask_embed.4")
        masks = torch.einsum("bqc,bchw->bqhw", embedding, features)
        small = F.interpolate(masks, size, mode="bilinear", align_corners=False)
        blocked = small.flatten(2).unsqueeze(1).repeat(1, 8, 1, 1).flatten(0, 1).sigmoid() < 0.5
        return logits, masks, torch.cat([blocked, torch.zeros(8, 3, blocked.shape[-1], dtype=torch.bool)], dim=1)

    def depth() -> Tensor:
        x = trunk.stem((image - mean) / std)
        maps = []
        for stage in trunk.stages:
            x = stage(x)
            maps.append(x)
        pyramid = [conv(maps[3 - i], f"{pixels}input_convs.{i}") for i in range(3)]
        sizes = [(level.shape[-2], level.shape[-1]) for level in pyramid]
        codes = [waves(*size) for size in sizes]
        position = torch.cat([code + w[pixels + "level_encoding.weight"][i] for i, code in enumerate(codes)], 1)
        places = torch.cat(
            [
                torch.stack(
                    torch.meshgrid((torch.arange(b) + 0.5) / b, (torch.arange(a) + 0.5) / a, indexing="xy"), -1
                ).view(-1, 2)
                for a, b in sizes
            ]
        )
        x = torch.cat([level.flatten(2).transpose(1, 2) for level in pyramid], 1)
        for i in range(6):
            name = f"{pixels}encoder.layers.{i}"
            x = norm(deformable(x, position, places, sizes, name + ".self_attn"), name + ".norms.0")
            x = norm(feed_forward(x, name), name + ".norms.1")
        memories = [
            part.transpose(1, 2).reshape(1, 256, *size)
            for part, size in zip(x.split([a * b for a, b in sizes], 1), sizes, strict=True)
        ]
        fine = conv(maps[0], pixels + "lateral_convs.0")
        fine = fine + F.interpolate(memories[-1], fine.shape[-2:], mode="bilinear", align_corners=False)
        fine = F.relu(conv(fine, pixels + "output_convs.0", 1))
        features = F.conv2d(fine, w[pixels + "mask_feature.weight"], w[pixels + "mask_feature.bias"])
        values = [m.flatten(2).transpose(1, 2) + w["level_embed.weight"][i] for i, m in enumerate(memories)]
        queries, places_of = w["query_feat.weight"][None], w["query_embed.weight"][None]
        mask = head(queries, features, sizes[0])[2]
        outputs = []
        for i in range(9):
            name, level = f"{layers}{i}", i % 3
            mask = mask & ~mask.all(-1, keepdim=True)
            key, value = values[level] + codes[level], values[level]
            queries = queries + attend(queries + places_of, key, value, mask, name + ".cross_attn")
            queries = norm(queries, name + ".norms.0")
            placed = queries + places_of
            queries = norm(queries + attend(placed, placed, queries, None, name + ".self_attn"), name + ".norms.1")
            queries = norm(feed_forward(queries, name), name + ".norms.2")
            logits, masks, mask = head(queries, features, sizes[(i + 1) % 3])
            edges = F.pad(logits.softmax(-1), (1, 0), value=0.001).cumsum(-1)
            centers = (edges[:, 1:] + edges[:, :-1]) / 2
            relative = (masks.softmax(1) * centers[..., None, None]).sum(1, keepdim=True)
            pooled = queries[:, 64:].flatten(1)
            scale = F.relu(linear(pooled, "scale_predictor.fc")) + 0.1
            scene = (100 * pooled @ w["class_embeddings"].T).softmax(-1)
            outputs.append((relative, scale, scene))
        relative, scale, _ = outputs[-1]
        return F.interpolate(relative * scale[..., None, None], image.shape[-2:], mode="bilinear", align_corners=False)

    def run() -> Tensor:
        with torch.no_grad():
            return depth()

    return run


def wordepth(system: Any, image: Tensor, text: Tensor, head: dict[str, Tensor]) -> Callable[[], Tensor]:
    """The image step in skip mode never.

    Attention as two products with a softmax between, window masks made in every block, maps in PyTorch's own order of
    memory, depth features of 128 channels enlarged to image size before they are added and convolved, and the last
    refinement's unused network, whose tensors are ``head``.
    """
    import torch

    from langdepth.systems.wordepth.blocks import TwoConvs, enlarged

    unused = TwoConvs(len(head["0.bias"]), len(head["2.bias"]))
    unused.load_state_dict(head)

    def depth() -> Tensor:
        scenes = system.text_vae(text)
        x2, x3, x4, x5 = _swin(system.encoder, (image - system._mean) / system._std)
        m0, m1 = system.metric(x5.amax((2, 3)))[..., None, None].split(1, 1)
        x = system.up_4(x5, x4)
        latent = scenes.at(system.sampler(x, scenes))
        x, d4 = system.refine_4(torch.zeros_like(x), latent)
        x, d3 = system.refine_3(system.up_3(x, torch.zeros_like(x3)), enlarged(d4, 2))
        x, before = system.up_2(x, torch.zeros_like(x2)), enlarged(d3, 2)
        unused(torch.cat([x, before], 1))
        d2 = system.refine_2(x, before)[1]
        summed = enlarged(d2, 4) + enlarged(d3, 8) + enlarged(d4, 16)
        found: Tensor = m0.sigmoid() * ((system.head(summed) + system.config.prior_mean).exp() + m1.exp())
        return found

    def run() -> Tensor:
        with torch.no_grad():
            return depth()

    return run


def _swin(encoder: Any, image: Tensor) -> list[Tensor]:
    """Swin with maps in PyTorch's own order and attention written out."""
    from torch.nn.functional import interpolate

    x = encoder.patch_embed(image)
    position = interpolate(encoder.absolute_pos_embed, x.shape[1:3], mode="bicubic", align_corners=False)
    x = x + position.permute(0, 2, 3, 1)
    maps = []
    for stage, layer in enumerate(encoder.layers):
        for block in layer.blocks:
            x = x + _windows(block, block.norm1(x))
            x = x + block.mlp(block.norm2(x))
        maps.append(encoder.get_submodule(f"norm{stage}")(x).permute(0, 3, 1, 2).contiguous())
        x = x if layer.downsample is None else layer.downsample(x)
    return maps


def _windows(block: Any, x: Tensor) -> Tensor:
    """Window attention with the logits in memory."""
    from torch.nn.functional import pad

    from langdepth.backbones.swin import shifted_window_mask

    (_, height, width, channels), side, shift = x.shape, block.window, block.shift
    attention = block.attn
    x = pad(x, (0, 0, 0, -width % side, 0, -height % side))
    rows, columns = x.shape[1] // side, x.shape[2] // side
    if shift:
        x = x.roll((-shift, -shift), (1, 2))
    x = x.view(1, rows, side, columns, side, channels).transpose(2, 3).reshape(-1, side**2, channels)
    query, key, value = attention.qkv(x).view(len(x), side**2, 3, attention.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    logits = (query * query.shape[-1] ** -0.5) @ key.mT
    bias = attention.relative_position_bias_table[attention.relative_position_index]
    logits = logits + bias.permute(2, 0, 1)
    if shift:
        logits = logits + shifted_window_mask(rows, columns, side, shift, x.device)[:, None]
    x = attention.proj((logits.softmax(-1) @ value).transpose(1, 2).reshape(x.shape))
    x = x.view(1, rows, columns, side, side, channels).transpose(2, 3).reshape(1, rows * side, columns * side, channels)
    if shift:
        x = x.roll((shift, shift), (1, 2))
    return x[:, :height, :width]


def depth_anything_v2_small() -> Callable[[Path], Any]:
    """File to depth array by transformers, random weights: keep-aspect 518 input in multiples of 14."""
    import numpy as np
    import torch
    from PIL import Image
    from torch.nn import functional as F
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    backbone = Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        patch_size=14,
        image_size=518,
        out_indices=[3, 6, 9, 12],
        apply_layernorm=True,
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=14,
        reassemble_hidden_size=384,
        reassemble_factors=[4, 2, 1, 0.5],
        neck_hidden_sizes=[48, 96, 192, 384],
        fusion_hidden_size=64,
    )
    model = DepthAnythingForDepthEstimation(config).eval()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))

    @torch.inference_mode()
    def depth_of(photo: Path) -> Any:
        with Image.open(photo) as photo:
            pixels = np.array(photo.convert("RGB"))
        height, width = pixels.shape[:2]
        scale = 518 / min(height, width)
        size = [round(side * scale / 14) * 14 for side in (height, width)]
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        image = F.interpolate(image, size=size, mode="bicubic", antialias=True).float() / 255
        depth = model((image - mean) / std).predicted_depth[None]
        return F.interpolate(depth, size=(height, width), mode="bilinear", align_corners=False)[0, 0].numpy()

    return depth_of
