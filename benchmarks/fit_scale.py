"""What reads the scale of `tiny` directly from the image (option ``direct``): fit it once more, all else kept as it is.

    python benchmarks/fit_scale.py runs/tiny/best.safetensors --root rgbd --weights fitted.safetensors

Every training image is seen whole and in some augmented versions; what enters that part and the scale that the relative
depth map would have needed are computed once, and the part is trained on them from the start; twice, with other
versions, each time half of its units, so that less of it is luck. Weights without the part get it. How sure the weights
are is not known any more: benchmarks/calibrate.py comes next. Takes 20 minutes of two cores, nearly all of them for the
versions.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langdepth.config import to_mapping
from langdepth.data.base import open_dataset
from langdepth.data.rows import RowDataset
from langdepth.data.transforms import Augmentation, TrainTransform
from langdepth.records import Batch
from langdepth.systems import registry
from langdepth.systems.tiny.model import Tiny, needed_scale
from langdepth.training.loaders import collate
from langdepth.training.recipe import load_recipe
from langdepth.training.sampling import Sizes
from langdepth.weights.checkpoint import load
from langdepth.weights.files import save

MEMBERS = 2
WHOLE = Augmentation(
    flip=0, random_crop=False, zoom_probability=0, rotate_probability=0, colour_probability=0, grey=0, blur=0
)
A_LITTLE = Augmentation(zoom=1.3, rotate_probability=0.3, erase=0.1)
MUCH = Augmentation(zoom=2.0, zoom_probability=1.0, rotate_probability=0.3, erase=0.1)
VERSIONS = (WHOLE, A_LITTLE, A_LITTLE, MUCH)


@dataclass(frozen=True)
class Seen:
    """What is learned from: inputs (N, F), log of the needed scale (N,), and how often each is drawn (N,)."""

    inputs: Tensor
    needed: Tensor
    weights: Tensor


def main() -> None:
    """Parse, look at the images, fit, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", help="weights file of tiny")
    parser.add_argument("--root", type=Path, required=True, help="folder with an index.csv")
    parser.add_argument("--weights", type=Path, required=True, help="write the fitted weights here")
    parser.add_argument("--steps", type=int, default=3000, help="of 64 images each")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    given = load(options.system)
    if not isinstance(given, Tiny):
        raise SystemExit(f"{options.system}: '{given.name}' is no tiny")
    if options.steps < 1 or given.config.direct % MEMBERS:
        raise SystemExit(f"--steps must be at least 1 and the option direct a multiple of {MEMBERS}")
    system = given.eval() if given.direct is not None else with_direct_scale(given)
    save(given, options.weights)  # as they are, so that a folder that cannot be written to is known before the work
    system.config = replace(system.config, sigma=None)
    dataset = open_dataset("folder", options.root, split="train")
    take_over(direct_of(system), [fitted(system, seen(system, dataset), options.steps) for _ in range(MEMBERS)])
    save(system, options.weights)
    print(f"written: {options.weights}")


def with_direct_scale(given: Tiny) -> Tiny:
    """The system with the part that it does not have yet."""
    recipe = load_recipe("tiny")["system"]["options"]
    options = {**to_mapping(given.config), "direct": recipe["direct"], "word_spread": recipe["word_spread"]}
    system = registry.build(given.name, options)
    assert isinstance(system, Tiny)
    missing, _ = system.load_state_dict(given.state_dict(), strict=False)
    assert all(name.startswith("direct.") for name in missing)
    system.provenance = given.provenance
    return system.eval()


def direct_of(system: Tiny) -> nn.Sequential:
    """The part."""
    assert system.direct is not None
    return system.direct


def seen(system: Tiny, dataset: RowDataset) -> Seen:
    """All versions of all images as the part sees them."""
    weights = load_recipe("tiny")["data"]["weights"]
    entered: list[Tensor] = []
    handle = direct_of(system).register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    found = []
    for count, (source, batch) in enumerate(batches(system, dataset)):
        with torch.no_grad():
            output = system(batch.image)
        depth = F.interpolate(output.depth, batch.depth.shape[-2:], mode="bilinear", align_corners=False)
        needed = needed_scale(batch, output.scale.log(), depth)
        known = needed.isfinite()
        share = torch.full_like(needed, weights.get(source, 1.0))
        found.append((entered.pop()[known], needed[known], share[known]))
        if count % 100 == 0:
            print(f"{count} of {len(dataset)} images", flush=True)
    handle.remove()
    inputs, needed, shares = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Seen(inputs, needed, shares)


def batches(system: Tiny, dataset: RowDataset) -> Iterator[tuple[str, Batch]]:
    """The versions of each image, and its source."""
    spec, aspects = system.input_spec, load_recipe("tiny")["data"]["aspects"]
    sizes = Sizes(spec, aspects)
    transforms = [TrainTransform(version, system.config.area, focal=spec.focal) for version in VERSIONS]
    for row, sample in zip(dataset.rows, dataset, strict=True):
        size = sizes.sizes[sizes.of(*sample.image.shape[-2:])]
        yield row.source, collate([transform(sample, size) for transform in transforms])


def fitted(system: Tiny, data: Seen, steps: int) -> nn.Sequential:
    """A part of fewer units, trained on inputs of mean 0 and deviation 1, which its first layer then takes over."""
    mean, deviation = data.inputs.mean(0), data.inputs.std(0) + 1e-3
    inputs = (data.inputs - mean) / deviation
    part = direct_of(Tiny(replace(system.config, direct=system.config.direct // MEMBERS))).train()
    optimiser = torch.optim.AdamW(part.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, steps, pct_start=0.15)
    for _ in range(steps):
        drawn = torch.multinomial(data.weights, 64, replacement=True)
        loss = (part(inputs[drawn]).squeeze(1) - data.needed[drawn]).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    first, _ = linear_layers(part)
    with torch.no_grad():
        first.weight.div_(deviation)
        first.bias.sub_(first.weight @ mean)
    return part


def linear_layers(part: nn.Sequential) -> list[nn.Linear]:
    """The first and the last layer."""
    return [layer for layer in part if isinstance(layer, nn.Linear)]


def take_over(part: nn.Sequential, members: list[nn.Sequential]) -> None:
    """Make ``part`` the mean of its members: their units side by side."""
    (first, last), layers = linear_layers(part), [linear_layers(member) for member in members]
    with torch.no_grad():
        first.weight.copy_(torch.cat([one.weight for one, _ in layers]))
        first.bias.copy_(torch.cat([one.bias for one, _ in layers]))
        last.weight.copy_(torch.cat([one.weight for _, one in layers], 1) / len(layers))
        last.bias.copy_(torch.stack([one.bias for _, one in layers]).mean(0))


if __name__ == "__main__":
    main()
