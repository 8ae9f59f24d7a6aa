"""Scene tables: CLIP's feature of every scene name, which ScaleDepth's scale queries are compared with.

names -> "a photo of a living room" -> CLIP's text tower -> unit vectors (K, D) -> one .safetensors

Published tables are a tensor without names, (28, D) or, without outdoor_scene, (27, D): see ``read_scene_table``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from langdepth.backbones.clip_weights import ClipWeights
from langdepth.errors import CheckpointError, MissingCheckpointError
from langdepth.text.clip_text import encode_sentences
from langdepth.text.scenes import SCENES
from langdepth.utils.arrays import load_npy
from langdepth.utils.files import require_marked, write_tensors
from langdepth.utils.tensors import read_pickle, read_safetensors, reading_tensors, require_plain

PROMPT = "a photo of a {}"
_MAX_BYTES = 1 << 24  # a published table has 86 kB
_LEAST_COSINE = 0.5  # of one CLIP's features of a name in different sentences; those of two CLIPs are near 0
_WHAT = "a scene table"
_WRITE_ONE = "write one with 'langdepth scenes encode'"


def imagenet_templates() -> tuple[str, ...]:
    """CLIP's 80 sentences for ImageNet's names, each with one "{}"."""
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


def encode_scenes(weights: ClipWeights, scenes: Sequence[str] = SCENES, templates: Sequence[str] = (PROMPT,)) -> Tensor:
    """Unit vectors (K, D) float32 of scene names, "_" taken as a space; see ``encode_sentences`` for ``templates``."""
    return encode_sentences([name.replace("_", " ") for name in scenes], weights, templates=templates)


def require_own_table(path: str | Path) -> None:
    """Raise LangdepthError where a table would replace a file of somebody else."""
    require_marked(Path(path), b'"clip_sha256":')


def write_scene_table(
    path: str | Path, table: Tensor, weights: ClipWeights, scenes: Sequence[str], templates: Sequence[str]
) -> None:
    """Write a table (K, D) with its scenes, CLIP and templates. Raises LangdepthError where that fails."""
    metadata = {
        "scenes": json.dumps(list(scenes)),
        "architecture": weights.architecture,
        "clip_weights": weights.source,
        "clip_sha256": weights.sha256,
        "templates": json.dumps(list(templates)),
    }
    write_tensors({"scene_table": table.contiguous()}, path, metadata)


class SceneTable(NamedTuple):
    """Rows (K, D) float32 of the scenes that were asked for.

    ``taken_for``: the scenes that the file's rows are taken for, in their order, where it names none itself.
    ``architecture``: of the CLIP that made them, where the file states it.
    """

    rows: Tensor
    taken_for: tuple[str, ...] | None
    architecture: str | None


def read_scene_table(path: str | Path, scenes: Sequence[str], width: int) -> SceneTable:
    """The rows (K, width) of ``scenes`` from a scene table; it may hold more scenes.

    Args:
        path: A file of ``write_scene_table``; or a tensor without names, (28, D) for all of ``SCENES`` in their order
            or (27, D) for those without outdoor_scene: ``.npy``, ``.safetensors``, or ``.pth``, of which only tensors
            are read.
        scenes: Names of ``SCENES``.
        width: Numbers of the features.

    Raises:
        CheckpointError: The file is missing, damaged or no table; its rows are too many or too few, of another width,
            not finite, or zero; or one of the scenes is not among them.
    """
    path = Path(path)
    _check_size(path)
    table, names, architecture = _named(path) if path.suffix == ".safetensors" else (_tensor(path), None, None)
    if table.ndim != 2 or not table.is_floating_point():
        raise CheckpointError(
            f"{path}: a scene table is a matrix of features, one row per scene, not {table.dtype} {tuple(table.shape)}"
        )
    taken_for = None
    if names is None:
        taken_for = next((SCENES[:count] for count in (len(SCENES), len(SCENES) - 1) if count == len(table)), None)
        if taken_for is None:
            raise CheckpointError(
                f"{path}: has {len(table)} rows and names no scenes; a table without names has {len(SCENES)} rows, in "
                f"the order of 'langdepth scenes', or {len(SCENES) - 1}, without {SCENES[-1]}"
            )
        names = list(taken_for)
    if len(table) != len(names):
        raise CheckpointError(f"{path}: names {len(names)} scenes, but its table has shape {tuple(table.shape)}")
    if table.shape[1] != width:
        of = f"the features of CLIP {architecture}" if architecture else "its features"
        raise CheckpointError(
            f"{path}: {of} have {table.shape[1]} numbers, the system's scale queries {width}; encode the scenes with "
            "another architecture"
        )
    table = table.detach().float()
    for name, row in zip(names, table, strict=True):
        if not bool(row.isfinite().all()) or not bool(row.any()):
            raise CheckpointError(f"{path}: the feature of the scene '{name}' is not finite or zero")
    missing = [name for name in scenes if name not in names]
    if missing:
        raise CheckpointError(f"{path}: has {len(names)} scenes, and '{missing[0]}' is none of them")
    return SceneTable(table[[names.index(name) for name in scenes]], taken_for, architecture)


def _check_size(path: Path) -> None:
    try:
        size = path.stat().st_size
    except OSError:
        raise MissingCheckpointError(f"{path}: no such file; write it with 'langdepth scenes encode'") from None
    if size > _MAX_BYTES:
        raise CheckpointError(
            f"{path}: with {size >> 20} MB too large for a scene table; a checkpoint's own table comes with it through "
            "'langdepth convert'"
        )


def _named(path: Path) -> tuple[Tensor, list[str] | None, str | None]:
    """Table, scenes and architecture of a ``.safetensors``; None for what it does not state."""
    with reading_tensors(path, _WHAT):
        metadata, tensors = read_safetensors(path)
        if "scene_table" in tensors:
            return tensors["scene_table"], list(json.loads(metadata["scenes"])), metadata["architecture"]
    return _only_tensor(path, tensors), None, None


def _tensor(path: Path) -> Tensor:
    """The one tensor of a ``.npy`` or of what ``torch.save`` wrote."""
    with reading_tensors(path, _WHAT):
        content = torch.from_numpy(load_npy(path)) if path.suffix == ".npy" else read_pickle(path)
    return _only_tensor(path, content)


def _only_tensor(path: Path, content: Any) -> Tensor:
    if isinstance(content, dict) and len(content) == 1:
        content = next(iter(content.values()))
    if not isinstance(content, Tensor):
        found = f"{len(content)} tensors" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise CheckpointError(f"{path}: is no scene table (it holds {found}); {_WRITE_ONE}")
    require_plain({"scene_table": content}, path)
    return content


def check_same_clip(rows: Tensor, known: Tensor, scenes: Sequence[str], where: str, whose: str) -> None:
    """Compare a table's rows (K, D) with ones of the same ``scenes`` that are known.

    One CLIP gives a name in another sentence, or the mean over many sentences, a feature of nearly the same direction.
    Those of two CLIPs have nothing in common but, perhaps, their width.

    Args:
        where: The file of the ``rows``, for the message.
        whose: What made the ``known`` ones.

    Raises:
        CheckpointError: The rows are of another CLIP, or in another order.
    """
    rows, known = F.normalize(rows, dim=-1), F.normalize(known, dim=-1)
    cosines = (rows * known).sum(-1)
    if float(cosines.mean()) < _LEAST_COSINE:
        raise CheckpointError(
            f"{where}: is of another CLIP than {whose}, although as wide: their features of the scene '{scenes[0]}' "
            f"have a cosine of {cosines[0]:.2f}, those of all scenes {cosines.mean():.2f} on average (VPD's table, for "
            f"example, is of ViT-L/14); {_WRITE_ONE}"
        )
    if len(rows) > 2:
        centred = F.normalize(rows - rows.mean(0), dim=-1) @ F.normalize(known - known.mean(0), dim=-1).T
        nearest = centred.argmax(-1)
        wrong = nearest != torch.arange(len(rows), device=nearest.device)
        if int(wrong.sum()) * 2 > len(rows):
            first = int(wrong.nonzero()[0])
            raise CheckpointError(
                f"{where}: its rows are in another order than 'langdepth scenes': row {first}, '{scenes[first]}', is "
                f"nearest to that of {whose} for '{scenes[int(nearest[first])]}'"
            )
