"""`scaledepth-nk` against a straightforward port of the published network: same weights, same machine, one run.

    python benchmarks/scaledepth_speed.py --threads 2 --images examples --out scaledepth_speed.json
    python benchmarks/scaledepth_speed.py --memory

One image of 352x512, batch 1. The port follows the published steps: timm's blocks as they come, attention of
``nn.MultiheadAttention``, and after each of the nine layers what prediction needs of the last alone: class logits, the
masks of all queries at stride 4, bins, relative depth, scale and scene scores. The runs alternate (A B C A B C), so
that all see the same machine; the ratio is that of the medians of CPU time, which other work on the machine changes
little. Weights follow from the tensors' names, with queries that differ enough for a spread of depth (tests/parity).
``--images``: a folder of photos for the comparison of bfloat16 with float32; without it the image is random.

``--memory`` measures the peak memory of one training step at 352x512, batch 2, with and without gradient checkpointing.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import in_turns, keyed_system, parser, use_threads, write

if TYPE_CHECKING:
    from torch import Tensor

    from langdepth.systems.base import System

HEIGHT, WIDTH = 352, 512
GOALS = {"float32": 1.2, "bfloat16": 2.0}


def main() -> None:
    """Parse, measure, print, write."""
    arguments = parser(__doc__)
    arguments.add_argument("--threads", type=int, default=2, help="CPU threads of torch (default: 2)")
    arguments.add_argument("--runs", type=int, default=5, help="repetitions (default: 5)")
    arguments.add_argument("--images", type=Path, help="folder of photos; at most 8 are taken")
    arguments.add_argument("--memory", action="store_true", help="measure memory of training instead")
    options = arguments.parse_args()
    use_threads(options.threads)
    write(memory() if options.memory else speed(options), options.out)


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds per image, and what bfloat16 changes."""
    import torch

    system, _ = keyed_system("scaledepth-nk", "scaledepth_full", {"area": None})
    images = photos(options.images)
    runs = {"port": port(system), "float32": ours(system, "float32"), "bfloat16": ours(system, "bfloat16")}
    found = {name: [run(image) for image in images] for name, run in runs.items()}
    differences = {
        name: max(float((a - b).abs().max()) for a, b in zip(found[name], found["port"], strict=True)) for name in runs
    }
    delta1 = {name: statistics.mean(map(within, found[name], found["float32"])) for name in runs}
    _, wall, cpu = in_turns({name: partial(run, images[0]) for name, run in runs.items()}, options.runs)
    spread = [float(depth.max() / depth.min()) for depth in found["float32"]]
    print(f"depth spreads over a factor of {min(spread):.1f} to {max(spread):.1f} in {len(images)} images")
    print(f"{'':>10} {'seconds':>8} {'of CPU':>8} {'ratio':>6} {'goal':>5} {'delta1':>8}  largest difference of depth")
    for name, value in cpu.items():
        goal = f"{GOALS[name]:.1f}" if name in GOALS else ""
        ratio, difference = cpu["port"] / value, differences[name]
        print(
            f"{name:>10} {wall[name]:8.3f} {value:8.3f} {ratio:6.2f} {goal:>5} {delta1[name]:8.5f}  {difference:.2g} m"
        )
    return {
        "threads": options.threads,
        "torch": torch.__version__,
        "seconds": wall,
        "cpu_seconds": cpu,
        "differences": differences,
        "delta1": delta1,
    }


def photos(folder: Path | None) -> list[Tensor]:
    """Images (1, 3, 352, 512) in [0, 1]."""
    import torch
    from torch.nn import functional as F

    from langdepth.utils.images import read_image

    if folder is None:
        return [torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))]
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))[:8]
    images = [torch.tensor(read_image(path).pixels).permute(2, 0, 1)[None] / 255 for path in paths]
    return [F.interpolate(image, (HEIGHT, WIDTH), mode="bilinear", antialias=True) for image in images]


def within(depth: Tensor, truth: Tensor) -> float:
    """Share of pixels that differ by less than 25 %."""
    ratio = depth / truth
    return float((ratio.maximum(1 / ratio) < 1.25).float().mean())


def ours(system: System, dtype: str) -> Callable[[Tensor], Tensor]:
    """What prediction does."""
    import torch

    from langdepth.prediction.network import infer

    def run(image: Tensor) -> Tensor:
        with torch.autocast("cpu", getattr(torch, dtype), enabled=dtype != "float32"):
            return infer(system.inference_copy(), image).depth

    return run


def port(system: System) -> Callable[[Tensor], Tensor]:
    """The published steps, one after the other, with the same tensors."""
    import math

    import timm
    import torch
    from torch import nn
    from torch.nn import functional as F

    tensors = system.state_dict()
    names: dict[str, str] = system.official_names()  # type: ignore[operator]
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

    def depth(image: Tensor) -> Tensor:
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
        return F.interpolate(relative * scale[..., None, None], (HEIGHT, WIDTH), mode="bilinear", align_corners=False)

    def run(image: Tensor) -> Tensor:
        with torch.no_grad():
            return depth(image)

    return run


def memory() -> dict[str, tuple[float, float]]:
    """Peak memory of a process that makes one training step, GB: up to the gradients, and with the optimiser's step."""
    found = {}
    for name, on in (("gradient checkpointing", True), ("without", False)):
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            found[name] = pool.apply(training_step, (on,))
        print(f"{name:>24}: {found[name][0]:.2f} GB for gradients, {found[name][1]:.2f} GB for the whole step")
    return found


def training_step(checkpointing: bool) -> tuple[float, float]:
    """One step of `scaledepth-nk` with AdamW, batch 2; the largest memory of this process before and after, GB."""
    import torch

    from langdepth.records import Batch
    from langdepth.systems import registry

    torch.manual_seed(0)
    system = registry.build("scaledepth-nk", {"gradient_checkpointing": checkpointing}).train()
    depth = 1 + 5 * torch.rand(2, 1, HEIGHT, WIDTH)
    batch = Batch(
        image=torch.rand(2, 3, HEIGHT, WIDTH),
        depth=depth,
        mask=depth > 0,
        scene=torch.tensor([6, 27]),
        text=[None] * 2,
        path=[""] * 2,
    )
    optimiser = torch.optim.AdamW(system.parameter_groups(1e-4, 0.05))
    system.loss(batch)["total"].backward()
    gradients = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    optimiser.step()
    return gradients / 2**20, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
