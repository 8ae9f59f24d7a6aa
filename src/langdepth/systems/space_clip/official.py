"""The authors' checkpoints: their tensor names and ours, and the towers' names in transformers' files."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from langdepth.backbones.clip_files import in_open_clip_names
from langdepth.errors import CheckpointError

TOWER = "clip_vision_model."
_DECODER = (
    (r"film_param_generators\.", "film."),
    (r"main_path_projections\.", "semantic_projections."),
    (r"structural_path_projections\.", "structural_projections."),
    (r"main_decoder_blocks\.", "semantic_blocks."),
    (r"structural_decoder_blocks\.", "structural_blocks."),
    (r"depth_prediction_head\.", "head."),
    (r"aux_depth_heads\.", "auxiliary_heads."),
)
_INSIDE = (
    ("upsample_low.upsample.", "up.0."),
    ("upsample_low.conv.0.", "up.1."),
    ("upsample_low.conv.1.", "up.2."),
    ("skip_clip_gate.0.", "semantic_gate."),
    ("skip_struct_gate.0.", "structural_gate."),
    ("fusion_conv.", "fuse."),
)


def decoder_name(name: str) -> str:
    """Our name of a tensor of the decoder, by theirs."""
    for theirs, ours in _DECODER:
        name = re.sub(f"^{theirs}", ours, name)
    for old, new in _INSIDE:
        name = name.replace(old, new)
    return name


def tower_tensors(tensors: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """An image tower's tensors under ``ImageTower``'s names, from transformers' or open_clip's.

    transformers' begin with ``vision_model.`` or, since version 5.24, do not. Other parts of a model are left out.

    Raises:
        CheckpointError: Naming ``source``, for another kind of model.
    """
    images = {name: value for name, value in tensors.items() if name.startswith(("vision_model.", "visual."))}
    if not images:
        images = {f"vision_model.{name}": value for name, value in tensors.items() if name.startswith(_PARTS)}
    if not images:
        raise CheckpointError(f"{source} holds no image tower ('vision_model.*' or 'visual.*')")
    found = in_open_clip_names(Path(source), images)
    renamed = {
        name.removeprefix("visual.")
        .replace("transformer.resblocks.", "blocks.")
        .replace("vision_model.head.", "pool."): value
        for name, value in found.items()
    }
    return {name: value for name, value in renamed.items() if name != "proj"}


_PARTS = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.", "head.")
