"""``langdepth prompts``: what distance words give on an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from langdepth.commands._parse import require_use, run
from langdepth.commands._systems import WordOptions
from langdepth.errors import say

EXAMPLE = """
langdepth prompts photo.jpg --clip-weights RN50.pt --swap far=distant --out words
"""


def main(arguments: Sequence[str]) -> int:
    """Entry of the command table."""
    return run(prompts, arguments, "langdepth prompts", EXAMPLE)


def prompts(
    image: str,
    *,
    system: str = "depthclip",
    clip_weights: str | None = None,
    own: WordOptions,
    scene: str | None = None,
    swap: str | None = None,
    out: str = "words",
    device: str = "auto",
) -> int:
    """What distance words give on an image: a table, similarity maps, the depth, and the effect of other words.

    Prints each word's similarity, probability and share of the image, and for each swap how the depth changes. Writes
    a sheet of images and the maps as .npz.

    Args:
        image: The image file.
        system: A system that compares with distance words: registry name, .safetensors file or hub id.
        own: Words of one's own.
        scene: A scene for which the prompt set has its own words or bins.
        swap: Words to swap with others, each on its own, with commas: far=distant,giant=huge.
        out: Folder for the results.
    """
    changes = own.changes

    from langdepth.evaluation import workbench
    from langdepth.systems.registry import list_systems
    from langdepth.weights.checkpoint import load

    workbench.files_of(out, Path(image).stem)
    used = bool(changes or swap or system in list_systems())
    require_use(used, f"is of no use: {system} holds its words; give other words or --swap", clip_weights=clip_weights)
    needed = clip_weights if changes or system in list_systems() else None
    loaded = workbench.with_words(load(system, clip_weights=needed, prompts=changes, device=device))
    encoded = workbench.encode_image(loaded, image)
    maps = workbench.word_maps(loaded, encoded, scene)
    say(*maps.table())
    say(f"depth {maps.depth.min():.2f} / {maps.depth.mean():.2f} / {maps.depth.max():.2f} m (min / mean / max)")
    swaps = {}
    before = loaded.config.prompts.words
    for asked in swap.split(",") if swap else []:
        loaded.use_prompts(workbench.swapped(before, asked), clip_weights)
        swaps[asked] = workbench.word_maps(loaded, encoded, scene)
        say(f"{asked}: {workbench.difference(maps, swaps[asked])}")
    for path in workbench.write_workbench(maps, swaps, out, Path(image).stem):
        say(f"-> {path}")
    return 0
