"""The authors' checkpoints, and CLIP weights for zero-shot systems, to one of our ``.safetensors``.

Official checkpoints are pickles: they are read here (and CLIP's in ``backbones/clip_files.py``), with
``weights_only=True``, and nowhere else.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from langdepth.errors import CheckpointError, MissingCheckpointError, UsageError
from langdepth.systems import registry
from langdepth.systems.capabilities import ConvertsOfficial, StandsOnClip, require
from langdepth.utils.tensors import (
    read_pickle,
    read_safetensors,
    reading_tensors,
    require_finite,
    require_plain,
    without_prefixes,
)
from langdepth.weights.checkpoint import save

# Where training scripts put the tensors among other things.
_NESTS = ("state_dict", "model_state_dict", "model")


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What became of a checkpoint: names that were used, those without a meaning here, and ours that it lacks.

    assumed: options that such checkpoints do not record and that nobody gave -> the system's own value, the choices.
    """

    path: Path
    used: list[str]
    ignored: list[str]
    missing: list[str]
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

    ``source``: the authors' checkpoint, or for a zero-shot system CLIP weights in any layout that
    ``backbones.clip_weights`` reads. ``options``: values of the system's config. ``licence``: the weights' terms, which
    the file will state. ``clip_weights``: the CLIP model (a file, or what ``find_clip_weights`` takes) for systems
    whose checkpoints hold no features of their words.

    Raises UsageError for unknown names and options, CheckpointError for a file that cannot be read, is of another
    layout, lacks tensors or has them in other shapes; nothing is written then.
    """
    source, out = Path(source), Path(out)
    if out.suffix != ".safetensors":
        raise UsageError(f"{out}: weights are written as .safetensors; give a name with this ending")
    if not source.is_file():
        raise MissingCheckpointError(f"{source}: no such file")
    try:
        system = registry.build(name, dict(options or {}))
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"system.options: {error}") from None
    unrecorded = system.unrecorded if isinstance(system, ConvertsOfficial) else {}
    assumed = {
        option: (getattr(system.config, option), choices)
        for option, choices in unrecorded.items()
        if option not in (options or {})
    }
    if clip_weights is not None:
        require(system, StandsOnClip).load_foundation(clip_weights)
    tensors = None if _is_archive(source) else read_checkpoint(source)
    zero_shot = isinstance(system, StandsOnClip) and system.zero_shot
    if zero_shot and (tensors is None or not any(key.startswith(("clip.", "model.clip.")) for key in tensors)):
        require(system, StandsOnClip).load_foundation(source)
        report: dict[str, list[str]] = {"used": list(system.state_dict()), "ignored": [], "missing": []}
    elif tensors is None:
        raise CheckpointError(f"{source}: is a TorchScript program, not a checkpoint of '{name}'")
    else:
        ours, report = _in_our_names(require(system, ConvertsOfficial), tensors)
        _fill(system, ours, report["missing"], source)
        system.provenance["source"] = f"converted from {source.name}"
    system.provenance["licence"] = licence or "not stated"
    return Conversion(path=save(system, out), assumed=assumed, **report)


def _is_archive(source: Path) -> bool:
    """Whether the file is a TorchScript program, OpenAI's way to publish CLIP."""
    if not zipfile.is_zipfile(source):
        return False
    with reading_tensors(source, "a checkpoint"), zipfile.ZipFile(source) as file:
        return any(name.endswith("/constants.pkl") for name in file.namelist())


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of an official checkpoint, without the prefixes of DataParallel and torch.compile.

    Raises CheckpointError.
    """
    content = read_safetensors(path)[1] if path.suffix == ".safetensors" else read_pickle(path)
    for nest in _NESTS:
        if isinstance(content, dict) and isinstance(content.get(nest), dict):
            content = content[nest]
    tensors = content if isinstance(content, dict) else {}
    if not tensors or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in tensors.items()):
        raise CheckpointError(f"{path}: unknown layout; expected tensors by name, or these under {', '.join(_NESTS)}")
    require_plain(tensors, path)
    return without_prefixes(tensors)


def _in_our_names(
    system: ConvertsOfficial, tensors: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """``convert_official``; where all names begin with one more word ("model."), also without it."""
    prefix = next(iter(tensors)).partition(".")[0] + "."
    wrapped = all(key.startswith(prefix) for key in tensors)
    try:
        found = system.convert_official(tensors)
        if not (wrapped and found[1]["missing"]):
            return found
        failure = None
    except CheckpointError as error:
        if not wrapped:
            raise
        failure = error
    try:
        inside = system.convert_official(without_prefixes({k.removeprefix(prefix): v for k, v in tensors.items()}))
        if not inside[1]["missing"]:
            return inside
    except CheckpointError:
        pass
    if failure is not None:
        raise failure
    return found


def _fill(system: torch.nn.Module, tensors: dict[str, Tensor], missing: list[str], source: Path) -> None:
    """Load all tensors or none."""
    own = system.state_dict()
    problems = [f"'{key}' is missing" for key in missing]
    problems += [
        f"'{key}' has shape {tuple(value.shape)}, expected {tuple(own[key].shape)}"
        for key, value in tensors.items()
        if value.shape != own[key].shape
    ]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(f"{source}: does not fit the system: {'; '.join(problems[:3])}{more}")
    require_finite(tensors, source)
    system.load_state_dict(tensors)
