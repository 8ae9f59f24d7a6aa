"""`depthclip` against a straightforward port of the published steps: same weights, same machine, one run.

    python benchmarks/depthclip_speed.py --threads 2 --out depthclip_speed.json

One image of 416x544 with flip averaging, batch 1, random weights (they take the same time as trained ones). The port
follows the paper step by step: float32, `no_grad`, image and mirror one after the other, text features computed once.
The runs alternate (A B C A B C), so that all see the same machine; the ratio is that of the medians.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from common import in_turns, parser, use_threads, write

if TYPE_CHECKING:
    from torch import Tensor

    from langdepth.systems.base import System

HEIGHT, WIDTH = 416, 544
GOALS = {"float32": 1.5, "bfloat16": 3.0}


def main() -> None:
    """Parse, measure, print, write."""
    arguments = parser(__doc__)
    arguments.add_argument("--threads", type=int, default=2, help="CPU threads of torch (default: 2)")
    arguments.add_argument("--runs", type=int, default=10, help="repetitions (default: 10)")
    options = arguments.parse_args()
    use_threads(options.threads)

    import torch

    from langdepth.weights.checkpoint import load

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the weights are random on purpose
        system = load("depthclip", clip_weights="random")
    image = torch.rand(1, 3, HEIGHT, WIDTH)
    runs = {
        "port": port(system, image),
        "float32": ours(system, image, "float32"),
        "bfloat16": ours(system, image, "bfloat16"),
    }
    found, seconds, _ = in_turns(runs, options.runs)
    differences = {name: float((depth - found["port"]).abs().max()) for name, depth in found.items()}
    print(f"{'':>10} {'seconds':>8} {'ratio':>6} {'goal':>5}  largest difference of depth")
    for name, value in seconds.items():
        goal = f"{GOALS[name]:.1f}" if name in GOALS else ""
        print(f"{name:>10} {value:8.3f} {seconds['port'] / value:6.2f} {goal:>5}  {differences[name]:.2g} m")
    facts = {"threads": options.threads, "torch": torch.__version__}
    write({**facts, "seconds": seconds, "differences": differences}, options.out)


def ours(system: System, image: Tensor, dtype: str) -> Callable[[], Tensor]:
    """What prediction does with a batch: inference copy, one pass for image and mirror."""
    import torch

    from langdepth.prediction.network import infer

    def run() -> Tensor:
        with torch.autocast("cpu", getattr(torch, dtype), enabled=dtype != "float32"):
            return infer(system.inference_copy(), image, flip=True).depth

    return run


def port(system: System, image: Tensor) -> Callable[[], Tensor]:
    """The published steps, one after the other."""
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
            return F.interpolate(mean_depth, size=(HEIGHT, WIDTH), mode="bilinear", align_corners=True)

    return run


if __name__ == "__main__":
    main()
