"""`wordepth-nyu` against a forward pass written down as published: same weights, same machine, one run.

    python benchmarks/wordepth_speed.py --threads 2 --out wordepth_speed.json

One image of 480x640, batch 1, skip mode never. The published steps: attention as two products with a softmax
between, window masks made in every block, maps in PyTorch's own order of memory, depth features of 128 channels
enlarged to image size before they are added and convolved, the last refinement's unused feature. "text" is depth from
words alone, without the encoder. The runs alternate, so that all see the same machine; the ratio is that of the medians
of CPU time, which other work on the machine changes little. Weights follow from the tensors' names (tests/parity).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from common import in_turns, keyed_system, parser, use_threads, write

if TYPE_CHECKING:
    from torch import Tensor

HEIGHT, WIDTH = 480, 640
GOALS = {"float32": 1.2, "bfloat16": 2.0}


def main() -> None:
    """Parse, measure, print, write."""
    arguments = parser(__doc__)
    arguments.add_argument("--threads", type=int, default=2, help="CPU threads of torch (default: 2)")
    arguments.add_argument("--runs", type=int, default=3, help="repetitions (default: 3)")
    options = arguments.parse_args()
    use_threads(options.threads)
    write(measure(options.threads, options.runs), options.out)


def measure(threads: int, repetitions: int) -> dict[str, Any]:
    """Seconds per image, and how far depth is from the published steps' (largest share)."""
    import torch
    from torch.nn.functional import normalize

    system, unused = published_system()
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, HEIGHT, WIDTH, generator=generator)
    text = normalize(torch.randn(1, 1024, generator=generator), dim=1)
    noise = system.draw_noise(1, HEIGHT, WIDTH, generator)
    fast = system.inference_copy()

    def bfloat16() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return fast(image, text).depth

    runs: dict[str, Callable[[], Tensor]] = {
        "published": lambda: published(system, unused, image, text),
        "float32": lambda: fast(image, text).depth,
        "bfloat16": bfloat16,
        "text": lambda: fast.imagine(text, noise).depth,
    }
    with torch.inference_mode():
        found, seconds, cpu_seconds = in_turns(runs, repetitions)
    print(f"{'':>10} {'seconds':>8} {'of CPU':>8} {'ratio':>6} {'goal':>5}  largest share that depth differs by")
    shares = {}
    for name, value in cpu_seconds.items():
        goal, share = f"{GOALS[name]:.1f}" if name in GOALS else "", ""
        if name != "text":
            shares[name] = float((found[name] / found["published"] - 1).abs().max())
            share = f"{shares[name]:.2g}"
        print(
            f"{name:>10} {seconds[name]:8.2f} {value:8.2f} {cpu_seconds['published'] / value:6.2f} {goal:>5}  {share}"
        )
    return {
        "threads": threads,
        "torch": torch.__version__,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "differences": shares,
    }


def published_system() -> tuple[Any, Any]:
    """`wordepth-nyu` with weights that follow from the tensors' names, and the last refinement's unused network."""
    from langdepth.systems.wordepth.blocks import TwoConvs

    system, weights = keyed_system("wordepth-nyu", "wordepth_full")
    head = {key.removeprefix("ref_2.fw."): value for key, value in weights.items() if key.startswith("ref_2.fw.")}
    unused = TwoConvs(len(head["0.bias"]), len(head["2.bias"]))
    unused.load_state_dict(head)
    return system, unused


def published(system: Any, unused: Any, image: Tensor, text: Tensor) -> Tensor:
    """The image step as published, in skip mode never."""
    import torch

    from langdepth.systems.wordepth.blocks import enlarged

    scenes = system.text_vae(text)
    x2, x3, x4, x5 = encode(system.encoder, (image - system._mean) / system._std)
    m0, m1 = system.metric(x5.amax((2, 3)))[..., None, None].split(1, 1)
    x = system.up_4(x5, x4)
    latent = scenes.at(system.sampler(x, scenes))
    x, d4 = system.refine_4(torch.zeros_like(x), latent)
    x, d3 = system.refine_3(system.up_3(x, torch.zeros_like(x3)), enlarged(d4, 2))
    x, before = system.up_2(x, torch.zeros_like(x2)), enlarged(d3, 2)
    unused(torch.cat([x, before], 1))
    d2 = system.refine_2(x, before)[1]
    summed = enlarged(d2, 4) + enlarged(d3, 8) + enlarged(d4, 16)
    return m0.sigmoid() * ((system.head(summed) + system.config.prior_mean).exp() + m1.exp())


def encode(encoder: Any, image: Tensor) -> list[Tensor]:
    """Swin with maps in PyTorch's own order and attention written out."""
    from torch.nn.functional import interpolate

    x = encoder.patch_embed(image)
    position = interpolate(encoder.absolute_pos_embed, x.shape[1:3], mode="bicubic", align_corners=False)
    x = x + position.permute(0, 2, 3, 1)
    maps = []
    for stage, layer in enumerate(encoder.layers):
        for block in layer.blocks:
            x = x + windows(block, block.norm1(x))
            x = x + block.mlp(block.norm2(x))
        maps.append(encoder.get_submodule(f"norm{stage}")(x).permute(0, 3, 1, 2).contiguous())
        x = x if layer.downsample is None else layer.downsample(x)
    return maps


def windows(block: Any, x: Tensor) -> Tensor:
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


if __name__ == "__main__":
    main()
