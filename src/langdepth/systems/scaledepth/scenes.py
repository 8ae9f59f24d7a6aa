"""Where the scene table of ScaleDepth comes from: a file, captions, or CLIP's text tower."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from langdepth.errors import CheckpointError, UsageError
from langdepth.text.caption_features import Captions, read_caption_features
from langdepth.text.encoders import CaptionBank, caption_scene_of_label
from langdepth.text.scene_table import check_same_clip, read_scene_table
from langdepth.text.scenes import CAPTION_SCENES


def table_of_file(
    path: str | Path, scenes: Sequence[str], width: int, clip: str, known: Tensor | None
) -> tuple[Tensor, str]:
    """Rows (K, width) of a scene table, and a line that says what it is; warns where the file names no scenes.

    Args:
        path: See ``text.scene_table.read_scene_table``.
        scenes: Names of the rows.
        width: Numbers of a row.
        clip: open_clip's name of the CLIP that the table has to be of.
        known: That CLIP's own rows, where they are known.

    Raises:
        CheckpointError: The file is missing or damaged or does not fit, or is of another CLIP.
    """
    found = read_scene_table(path, scenes, width)
    if found.architecture not in (None, clip):
        raise CheckpointError(
            f"{path}: is of CLIP {found.architecture}, the system takes that of {clip}; encode the scenes with it, or "
            "set system.options.clip"
        )
    checked = "whether this CLIP made them could not be checked, for lack of system.prepare.clip_weights"
    if known is not None:
        check_same_clip(found.rows, known, scenes, str(path), f"CLIP {clip}")
        checked = f"they agree with those of CLIP {clip}"
    if found.taken_for is not None:
        warnings.warn(
            f"{path}: names no scenes; its {len(found.taken_for)} rows are taken for {found.taken_for[0]}, "
            f"{found.taken_for[1]} ... {found.taken_for[-1]}, as 'langdepth scenes' lists them; {checked}",
            stacklevel=3,
        )
    return found.rows, f"{Path(path).name}; {checked}"


def table_of_captions(source: str | Path | Captions, count: int) -> Tensor:
    """Rows (count, D) for the first scenes: mean feature of the captions about the nearest scene that captions name.

    Raises UsageError where no caption is about one of these.
    """
    captions = CaptionBank(read_caption_features(source)).by_scene
    absent = [name for name, features in zip(CAPTION_SCENES, captions, strict=True) if not len(features)]
    if absent:
        raise UsageError(f"{source}: no caption is about the scene '{absent[0]}'; give a file of more captions")
    rows = F.normalize(torch.stack([features.mean(0) for features in captions]), dim=-1)
    return rows[caption_scene_of_label()[:count]]
