"""Systems with their weights: by registry name, from a file or folder, or from the hub."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from langdepth._version import __version__
from langdepth.errors import CheckpointError, UsageError, first_line, is_memory_error, nearest
from langdepth.evaluation.protocols import ScaleKind
from langdepth.systems import registry
from langdepth.systems.base import System
from langdepth.systems.capabilities import ReadsWithClip, StandsOnClip, TakesBase, TakesPrompts, Trainable, require
from langdepth.systems.ensemble import combine
from langdepth.utils.arguments import checked
from langdepth.utils.devices import move
from langdepth.utils.files import expanded, real_path
from langdepth.utils.reading import file_sha256
from langdepth.weights import fetch
from langdepth.weights.files import fill, read, require_no_graph, stated
from langdepth.weights.hub import WEIGHTS_FILE, download
from langdepth.weights.names import PICKLES, require_meaning

MEMORY_RATIO, SPARE_MEMORY = 16, 1 << 30  # what a network may take, in bytes of its file and beside them


@checked
def load(
    name: str | Path | Sequence[str | Path],
    *,
    device: str | torch.device | None = None,
    offline: bool | None = None,
    clip_weights: str | Path | None = None,
    prompts: Mapping[str, Any] | None = None,
    base: str | Path | System | None = None,
    depth_kind: ScaleKind | None = None,
) -> System:
    """A system with its weights, in eval mode.

    ``system.provenance`` is what the file states (licence, source, training, numbers) and "weights", "sha256" (None
    where nobody states one to check) and "langdepth_version".

    Args:
        name: A registry name ("tiny"), a ``.safetensors`` file, a folder that ``save_pretrained`` wrote, or a hub id
            "owner/name" or "owner/name@revision"; "module:Class" for a class of one's own, with weights
            "module:Class@FILE.safetensors"; "transformers:NAME" or "transformers:FOLDER" for a depth model of that
            library. A list of them gives the mean of all these systems, which may differ in
            network size but must all give metres.
        device: Where to put it (default: CPU).
        offline: Use only what the hub's cache holds; the default follows the environment variable HF_HUB_OFFLINE.
        clip_weights: For zero-shot systems by name, the CLIP weights they stand on: a file, None for open_clip's own
            download, or "random" (with a warning). For a file that holds its own, what encodes new words or, for
            systems with a small sentence encoder, what encodes sentences instead of it.
        prompts: Fields of ``langdepth.text.prompts.PromptSet`` that replace the system's own words, templates, bins or
            scenes.
        base: For systems that give metres to relative maps, what these come from: anything that this function takes, or
            a system. Without it the maps come with the images, as their overlay.
        depth_kind: What the numbers of a model of transformers, or of such maps, are where nothing else says it:
            "metric", "relative" (depth up to a factor) or "disparity" (the larger the nearer).

    Raises:
        UsageError: For a name that is none of these.
        CheckpointError: For a file that is missing, damaged or does not fit.
    """
    if not isinstance(name, str | Path):
        options: dict[str, Any] = {"clip_weights": clip_weights, "prompts": prompts, "depth_kind": depth_kind}
        options |= {"offline": offline, "base": base}
        return move(combine([load(one, **options) for one in name]).eval(), device)
    if str(name).startswith(registry.TRANSFORMERS):
        system = _load_transformers(str(name), clip_weights, prompts, depth_kind)
    elif _needs_no_file(str(name)):
        system = _load_without_file(str(name), clip_weights, prompts)
    else:
        system = _load_file(str(name), offline, clip_weights, prompts)
    if base is not None or isinstance(system, TakesBase):
        _give_base(require(system, TakesBase), base, offline, depth_kind)
    elif depth_kind is not None and not str(name).startswith(registry.TRANSFORMERS):
        raise UsageError(f"'{name}' knows what its numbers are; leave the depth kind out")
    return move(system.eval(), device)


def _give_base(
    system: TakesBase, base: str | Path | System | None, offline: bool | None, depth_kind: ScaleKind | None
) -> None:
    if base is None:
        system.use_base(None, depth_kind or "disparity")
        return
    loaded = base if isinstance(base, System) else load(base, offline=offline, depth_kind=depth_kind)
    system.use_base(loaded)


def _load_file(
    name: str, offline: bool | None, clip_weights: str | Path | None, prompts: Mapping[str, Any] | None
) -> System:
    own, weights = _own_class(name)
    path, label, sha256 = locate(weights, offline)
    if sha256:
        _check_sha256(path, label, sha256)
    system = _read_system(path, label, own, trusted=weights in registry.REGISTRY and bool(sha256))
    system.provenance |= {"weights": label, "sha256": sha256 or None}
    if prompts:
        require(system, TakesPrompts).use_prompts(prompts, clip_weights)
    elif clip_weights is not None:
        if not isinstance(system, ReadsWithClip):
            raise UsageError(f"{label}: holds all weights of '{system.name}'; leave the CLIP weights out")
        system.read_with_clip(clip_weights)
    return system


def _own_class(name: str) -> tuple[str | None, str]:
    """The class and the weights of "module:Class@weights" or "module:Class", whose module is imported; (None, name)."""
    cls, _, weights = name.partition("@")
    if name in registry.REGISTRY or os.path.exists(name) or not registry.OWN_CLASS.fullmatch(cls):
        return None, name
    registry.entry(cls)
    return cls, weights or name


def _needs_no_file(name: str) -> bool:
    """Whether a system is complete without trained weights: from CLIP's alone, or because nothing in it is trained."""
    if name not in registry.REGISTRY:
        return False
    found = registry.entry(name)
    cls = found.system_class()
    return (issubclass(cls, StandsOnClip) and cls.zero_shot) or (
        found.weights is None and not issubclass(cls, Trainable | StandsOnClip)
    )


def _load_without_file(name: str, clip_weights: str | Path | None, prompts: Mapping[str, Any] | None) -> System:
    system = registry.build(name)
    if isinstance(system, StandsOnClip) or clip_weights is not None or prompts:
        require(system, StandsOnClip).load_foundation(clip_weights, prompts)
    system.provenance |= {"weights": name, "sha256": None, "langdepth_version": __version__}
    return system


def _load_transformers(
    name: str, clip_weights: str | Path | None, prompts: Mapping[str, Any] | None, depth_kind: ScaleKind | None
) -> System:
    from langdepth.systems.foreign import load_transformers

    source = name.removeprefix(registry.TRANSFORMERS)
    if not source.strip():
        raise UsageError(f"'{name}': name a model after the colon, transformers:owner/name or transformers:FOLDER")
    system = load_transformers(source, depth_kind)
    if clip_weights is not None or prompts:
        require(system, StandsOnClip)
    return system


# Finding the file


def require_available(name: str) -> None:
    """Raise as ``load`` does where a name means nothing that it opens. Fetches from the hub, but reads no weights."""
    if not _needs_no_file(name):
        located(name)


def located(name: str) -> Path:
    """The weights file that a name means, also one with a class of one's own. Raises as ``locate`` does."""
    return locate(_own_class(name)[1])[0]


def locate(name: str, offline: bool | None = None) -> tuple[Path, str, str]:
    """The weights file that a name means, its label for messages and provenance, and its sha256 if one is stated.

    Raises UsageError and CheckpointError as ``load`` does.
    """
    if name in registry.REGISTRY:
        return _by_name(name, offline)
    hub_id, path = require_meaning(name), expanded(name)
    if os.path.isdir(path):  # of pathlib's functions some raise OSError for names that are too long
        if not (path / WEIGHTS_FILE).is_file():
            raise CheckpointError(f"{path}: is a folder without {WEIGHTS_FILE}; give a .safetensors file inside it")
        return path / WEIGHTS_FILE, str(path), ""
    if hub_id is None:
        require_no_graph(path)
        if path.suffix in PICKLES:
            raise CheckpointError(
                f"{path}: pickled checkpoints are only read by `langdepth convert`, which writes a .safetensors to load"
            )
        return path, str(path), ""
    path = download(*hub_id, offline)
    # The hub's cache names each large file by the sha256 the hub states for it.
    stored = real_path(path).name
    return path, name, stored if re.fullmatch(r"[0-9a-f]{64}", stored) else ""


def _by_name(name: str, offline: bool | None) -> tuple[Path, str, str]:
    record = registry.entry(name).weights
    if record is None and name in registry.PUBLISHED:
        path, sha256 = fetch.located(name, offline)
        return path, name, sha256
    if record is None:
        raise CheckpointError(
            f"the system '{name}' has no trained weights in the package: give a .safetensors file (from "
            "`langdepth train`, or made of the authors' checkpoint by `langdepth convert`) or a hub id"
        )
    if not record.path.is_file():
        raise CheckpointError(f"{record.path}: the weights of '{name}' are missing; reinstall langdepth")
    return record.path, name, record.sha256


def _check_sha256(path: Path, label: str, expected: str) -> None:
    found = file_sha256(path)
    if found != expected:
        raise CheckpointError(
            f"{label}: {path} is damaged: its sha256 is {found[:12]}..., expected {expected[:12]}...; "
            "delete it and fetch it again"
        )


# Reading it


def _read_system(path: Path, label: str, own: str | None, trusted: bool) -> System:
    """The system in a file.

    Args:
        path: The file.
        label: Its name in messages.
        own: A class of one's own that it belongs to, None for the system that it states.
        trusted: Its size needs no check before memory is taken for it.
    """
    metadata, tensors = read(path, label)
    name = own or metadata.get("system", "")
    if name not in registry.REGISTRY:
        raise CheckpointError(f"{label}: holds {_unknown_system(name, metadata.get('package', ''), label)}")
    config = stated(metadata, "config", label)
    try:
        renamed = getattr(registry.entry(name).system_class().Config, "RENAMED", {})  # since the file was written
        config = {renamed.get(option, option): value for option, value in config.items()}
        if not trusted:
            _require_size(name, config, tensors, label)
        system = registry.build(name, config)
    except CheckpointError:
        raise
    except (UsageError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        if is_memory_error(error):
            raise CheckpointError(f"{label}: not enough memory for its network") from None
        raise CheckpointError(f"{label}: its configuration does not fit '{name}': {first_line(error)}") from error
    fill(system, tensors, label, name)
    system.provenance = stated(metadata, "provenance", label)
    system.provenance["langdepth_version"] = metadata.get("langdepth_version", "unknown")
    return system


def _unknown_system(name: str, package: str, label: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", package):
        return (
            f"the system '{name}' of the package '{package}', which is not installed; install it with pip install "
            f"{package}, if you trust it"
        )
    if registry.OWN_CLASS.fullmatch(name):
        return f"a system of the class {name}; name it too: {name}@{label}"
    return f"the system '{name}', which langdepth {__version__} does not know: {nearest(name, registry.REGISTRY)}"


def _require_size(name: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor], label: str) -> None:
    """Raise CheckpointError where the configuration asks for a far larger network than the tensors are of.

    The network is built without content, so that a few bytes in a file cannot fill the machine.
    """
    try:
        with torch.device("meta"):
            network = registry.build(name, dict(config))
    except (NotImplementedError, RuntimeError):  # somebody else's network, which needs numbers to be built
        return
    stored = sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())
    needed = sum(tensor.numel() * tensor.element_size() for tensor in (*network.parameters(), *network.buffers()))
    if needed > SPARE_MEMORY + MEMORY_RATIO * stored:
        raise CheckpointError(f"{label}: its configuration asks for far more memory than its tensors have; refused")
