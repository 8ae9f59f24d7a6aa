"""``langdepth scenes``: the scene names, and a table of their CLIP features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from langdepth.commands._parse import run
from langdepth.errors import UsageError, say
from langdepth.text.scenes import SCENES

EXAMPLE = """
langdepth scenes
langdepth scenes encode --clip-weights open_clip_model.safetensors --out scenes.safetensors
"""


def main(arguments: Sequence[str]) -> int:
    """Entry of the command table."""
    return run(scenes, arguments, "langdepth scenes", EXAMPLE)


def scenes(
    action: Literal["list", "encode"] = "list",
    *,
    clip_weights: str | None = None,
    architecture: str | None = None,
    quick_gelu: bool = False,
    templates: Literal["photo", "imagenet"] | None = None,
    out: Path | None = None,
) -> None:
    """List the scenes that systems with scene labels know, or write CLIP's features of their names.

    ScaleDepth learns its scale from such a table: name it in system.prepare.scene_table of its recipe.

    Args:
        action: List the names with their labels, or encode them.
        clip_weights: Weights of the CLIP model: a file of open_clip, OpenAI or Hugging Face, the name of weights that
            open_clip downloads (laion2b_s29b_b131k_ft_soup for ScaleDepth), or the word random.
        architecture: open_clip's name of the model; without it convnext_large_d_320, as in ScaleDepth.
        quick_gelu: For weights that were trained with QuickGELU, as OpenAI's were.
        templates: The sentences: photo, "a photo of a living room" (the default), or the mean over CLIP's 80 for
            ImageNet.
        out: The .safetensors file to write.
    """
    if action == "list":
        if (clip_weights, out, architecture, templates, quick_gelu) != (None, None, None, None, False):
            raise UsageError("list takes no options and writes nothing; to write a table: langdepth scenes encode")
        say(*(f"{label:>2}  {name}" for label, name in enumerate(SCENES)))
        return
    if clip_weights is None or out is None:
        raise UsageError("encode needs the weights of a CLIP model, --clip-weights, and a file to write, --out")

    from langdepth.backbones.clip_weights import find_clip_weights
    from langdepth.text.scene_table import (
        PROMPT,
        encode_scenes,
        imagenet_templates,
        require_own_table,
        write_scene_table,
    )

    require_own_table(out)
    architecture = architecture or "convnext_large_d_320"
    weights = find_clip_weights(clip_weights, architecture, quick_gelu)
    sentences = imagenet_templates() if templates == "imagenet" else (PROMPT,)
    table = encode_scenes(weights, SCENES, sentences)
    write_scene_table(out, table, weights, SCENES, sentences)
    say(f"written: {out}, {len(table)} scenes of {table.shape[1]} numbers, CLIP {architecture} ({weights.source})")
