"""The authors' checkpoints, and CLIP weights for zero-shot systems, to a ``.safetensors`` of this package."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from langdepth.errors import CheckpointError, MissingCheckpointError
from langdepth.systems import registry
from langdepth.systems.capabilities import ConvertsOfficial, StandsOnClip, require
from langdepth.utils.tensors import read_checkpoint, reading_tensors, without_prefixes
from langdepth.weights.files import fill, require_no_graph, require_own, require_suffix, save


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What became of a checkpoint: the names that were used, and those that the system has no part for.

    assumed: options that such checkpoints do not record and that nobody gave -> the system's own value, the choices.
    """

    path: Path
    used: list[str]
    ignored: list[str]
    assumed: dict[str, tuple[Any, str]]


def convert(
    source: str | Path,
    name: str,
    out: str | Path,
    options: Mapping[str, Any] | None = None,
    *,
    licence: str | None = None,
    clip_weights: str | Path | None = None,
) -> Conversion:
    """Write the system ``name`` with the weights of ``source`` to ``out`` (``.safetensors``).

    Args:
        source: The authors' checkpoint, or for a zero-shot system CLIP weights in any layout that
            ``backbones.clip_files`` reads.
        name: A registry name.
        out: The file to write.
        options: Values of the system's config.
        licence: The terms of the weights, which the file will state.
        clip_weights: The CLIP model (a file, or what ``find_clip_weights`` takes) for systems whose checkpoints hold no
            features of their words.

    Raises:
        UsageError: For unknown names and options.
        CheckpointError: For a file that cannot be read, is of another layout, lacks tensors or has them in other
            shapes; nothing is written.
        LangdepthError: A file of somebody else is in the place of ``out`` or of the model card beside it.
    """
    source, out = Path(source), require_suffix(out)
    if not os.path.isfile(source):  # pathlib's raises OSError for names that are too long
        raise MissingCheckpointError(f"{source}: no such file")
    require_no_graph(source)
    require_own(out)
    tensors = None if _is_archive(source) else read_checkpoint(source)
    system = registry.build(name, dict(options or {}))
    unrecorded = system.unrecorded if isinstance(system, ConvertsOfficial) else {}
    assumed = {
        option: (getattr(system.config, option), choices)
        for option, choices in unrecorded.items()
        if option not in (options or {})
    }
    if clip_weights is not None:
        require(system, StandsOnClip).load_foundation(clip_weights)
    zero_shot = isinstance(system, StandsOnClip) and system.zero_shot
    if zero_shot and (tensors is None or not any(key.startswith(("clip.", "model.clip.")) for key in tensors)):
        require(system, StandsOnClip).load_foundation(source)
        report: dict[str, list[str]] = {"used": list(system.state_dict()), "ignored": []}
    elif tensors is None:
        raise CheckpointError(f"{source}: is a TorchScript program, not a checkpoint of '{name}'")
    else:
        ours, report = _in_our_names(require(system, ConvertsOfficial), tensors)
        fill(system, ours, source, name)
        system.provenance["source"] = f"converted from {source.name}"
    system.provenance["licence"] = licence or "not stated"
    return Conversion(path=save(system, out), used=report["used"], ignored=report["ignored"], assumed=assumed)


def _is_archive(source: Path) -> bool:
    """Whether the file is a TorchScript program, OpenAI's way to publish CLIP."""
    if not zipfile.is_zipfile(source):
        return False
    with reading_tensors(source, "a checkpoint"), zipfile.ZipFile(source) as file:
        return any(name.endswith("/constants.pkl") for name in file.namelist())


def _in_our_names(
    system: ConvertsOfficial, tensors: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """``convert_official``; where all names begin with one more word ("model."), also without it."""
    prefix = next(iter(tensors)).partition(".")[0] + "."
    if all(key.startswith(prefix) for key in tensors):
        with suppress(CheckpointError):
            inside = system.convert_official(without_prefixes({k.removeprefix(prefix): v for k, v in tensors.items()}))
            if not inside[1]["missing"]:
                return inside
    return system.convert_official(tensors)
