"""Scene tables: CLIP's feature of every scene name, which ScaleDepth's scale queries are compared with.

names -> "a photo of a living room" -> CLIP's text tower -> unit vectors (K, D) -> one .safetensors
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from langdepth.backbones.clip_weights import ClipWeights
from langdepth.errors import CheckpointError
from langdepth.text.clip_text import text_features
from langdepth.text.scenes import SCENES
from langdepth.utils.files import write_tensors

PROMPT = "a photo of a {}"


def imagenet_templates() -> tuple[str, ...]:
    """The 80 sentences that CLIP reads ImageNet's names in, each with one "{}"."""
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


def encode_scenes(weights: ClipWeights, scenes: Sequence[str] = SCENES, templates: Sequence[str] = (PROMPT,)) -> Tensor:
    """Unit vectors (K, D) float32 of scene names, "_" read as a space; see ``text_features`` for ``templates``."""
    return text_features([name.replace("_", " ") for name in scenes], weights, templates=templates)


def write_scene_table(
    path: str | Path, table: Tensor, weights: ClipWeights, scenes: Sequence[str], templates: Sequence[str]
) -> None:
    """Write a table (K, D) with what it was made of. Raises LangdepthError when the file cannot be written."""
    metadata = {
        "scenes": json.dumps(list(scenes)),
        "architecture": weights.architecture,
        "clip_weights": weights.source,
        "clip_sha256": weights.sha256,
        "templates": json.dumps(list(templates)),
    }
    write_tensors({"scene_table": table.contiguous()}, path, metadata)


def read_scene_table(path: str | Path, scenes: Sequence[str], width: int) -> Tensor:
    """The rows (K, width) of ``scenes`` from a file of ``write_scene_table``; it may hold more scenes.

    Raises CheckpointError for a file that is none, and for one of another width or without one of the scenes.
    """
    try:
        with safe_open(path, framework="pt") as file:
            table: Tensor = file.get_tensor("scene_table").float()
            metadata = file.metadata()
        names = list(json.loads(metadata["scenes"]))
        architecture = metadata["architecture"]
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; write it with 'langdepth scenes encode'") from None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: is no scene table ({error}); write one with 'langdepth scenes encode'"
        ) from None
    if table.ndim != 2 or len(table) != len(names):
        raise CheckpointError(f"{path}: names {len(names)} scenes, but its table has shape {tuple(table.shape)}")
    if table.shape[1] != width:
        raise CheckpointError(
            f"{path}: the features of CLIP {architecture} have {table.shape[1]} numbers, the system's scale queries "
            f"{width}; encode the scenes with another architecture"
        )
    missing = [name for name in scenes if name not in names]
    if missing:
        raise CheckpointError(f"{path}: has {len(names)} scenes, and '{missing[0]}' is none of them")
    return table[[names.index(name) for name in scenes]]
