"""Peak memory of one training step of `scaledepth-nk` at 352x512, batch 2, with and without gradient checkpointing.

python benchmarks/train_memory.py --out train_memory.json
"""

from __future__ import annotations

import multiprocessing
import resource

from common import parser, write

HEIGHT, WIDTH = 352, 512


def main() -> None:
    """Parse, measure, print, write."""
    write(memory(), parser(__doc__).parse_args().out)


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
